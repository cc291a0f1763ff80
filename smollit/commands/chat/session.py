"""Session: lines of the user, commands and messages, until the end of the input."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from smollit.commands.chat.speaker import Message, Sampling, Speaker
from smollit.commands.chat.view import View
from smollit.commands.chat.votes import Votes

HELP = """/reset               forget the conversation
/retry               respond again to the last message
/system TEXT         set the system prompt; without a text, remove it
/temperature NUMBER  0 decodes greedily
/help                this list
/quit                end (so does Ctrl-D; Ctrl-C ends a response)"""


@dataclass
class Session:
    """A conversation with one or two models. Each model continues its own responses; under votes, the better one.

    Args:
        speakers: One model, or two.
        sampling: How responses are drawn.
        view: Where they are shown.
        system: The system prompt.
        votes: Where votes go: then two responses are shown without the names of their models, in random order.
        order: Draws that order.
    """

    speakers: list[Speaker]
    sampling: Sampling
    view: View
    system: str | None = None
    votes: Votes | None = None
    order: Random = field(default_factory=Random)
    histories: list[list[Message]] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def run(self) -> None:
        """Read lines and respond to them."""
        for line in lines("> "):
            name, _, rest = line.strip().partition(" ")
            if name == "/quit":
                break
            if name.startswith("/"):
                self.command(name, rest.strip())
            elif line.strip():
                self.message(line.strip())
        if self.votes is not None:
            for said in self.votes.summary():
                self.view.say(said)

    def reset(self) -> None:
        """Forget the conversation."""
        self.histories = [[] for _ in self.speakers]

    def command(self, name: str, rest: str) -> None:
        """Do what a line with a slash says."""
        if name == "/reset":
            self.reset()
        elif name == "/system":
            self.system = rest or None
            self.reset()
        elif name == "/temperature":
            self.set_temperature(rest)
        elif name == "/retry" and any(self.histories):
            asked = next(turn["content"] for turn in reversed(self.histories[0]) if turn["role"] == "user")
            self.histories = [history[:-2] for history in self.histories]
            self.message(asked)
            if all(speaker.is_greedy(self.sampling) for speaker in self.speakers):
                self.view.say("[decoded greedily, so a retry is the same: /temperature 0.7 draws another response]")
        else:
            self.view.say("there is nothing to retry" if name == "/retry" else HELP)

    def set_temperature(self, text: str) -> None:
        """Set the temperature to a number of at least 0."""
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            self.view.say(f"/temperature needs a number of at least 0, got {text!r}")
        else:
            self.sampling.temperature = value

    def message(self, text: str) -> None:
        """Respond to a message of the user; one that does not fit is named, and forgotten."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": text}
        prompts = [[*system, *history, asked] for history in self.histories]
        try:
            for speaker, prompt in zip(self.speakers, prompts, strict=True):
                speaker.prompt_ids(prompt)
        except ValueError as error:
            self.view.say(str(error))
            return
        if self.votes is not None:
            responses = self.compare(prompts[0], self.votes)
        elif len(self.speakers) == 1:
            responses = [self.view.one(self.pieces(self.speakers[0], prompts[0]))]
            self.view.mark(self.speakers[0].finish)
        else:
            named = zip(self.speakers, prompts, strict=True)
            responses = self.view.two([(speaker.name, self.pieces(speaker, prompt)) for speaker, prompt in named])
            for speaker in self.speakers:
                self.view.mark(speaker.finish, speaker.name)
        for history, response in zip(self.histories, responses, strict=True):
            history += [asked, {"role": "assistant", "content": response}]

    def compare(self, prompt: list[Message], votes: Votes) -> list[str]:
        """Show both responses blind, take the vote, and return the response that the conversation continues with."""
        shown = self.order.sample(self.speakers, 2)
        texts = self.view.two([(str(n), self.pieces(speaker, prompt)) for n, speaker in enumerate(shown, 1)])
        choice = next(lines("better? 1, 2, = for a tie, s to skip: "), "s").strip()
        while choice not in ("1", "2", "=", "s"):
            choice = next(lines("1, 2, = or s: "), "s").strip()
        better = 1 if choice == "2" else 0
        named = [(speaker.name, text) for speaker, text in zip(shown, texts, strict=True)]
        if choice in ("1", "2") and texts[0] != texts[1]:
            votes.add(prompt, chosen=named[better], rejected=named[1 - better])
        elif choice != "s":
            votes.counts["="] += 1
        if choice != "s":
            self.view.say(f"1 is {shown[0].name}, 2 is {shown[1].name}")
        return [texts[better]] * 2

    def pieces(self, speaker: Speaker, prompt: list[Message]) -> Iterator[str]:
        """The pieces of a response; Ctrl-C ends it early."""
        with suppress(KeyboardInterrupt):
            yield from speaker.respond(prompt, self.sampling)


def lines(prompt: str) -> Iterator[str]:
    """Lines of the user until the end of the input; the prompt is shown on a terminal only."""
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
