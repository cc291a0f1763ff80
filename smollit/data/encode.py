"""Rows -> examples: parsed, rendered, tokenised in batches, cut to length; each bad row with its cause."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from smollit.data.chat import ChatTemplate
from smollit.data.records import BadRow, Conversation, Preference, drop_nulls, to_conversation, to_preference

Kind = Literal["chat", "preference"]
RAW = "raw_json_line"  # the one column of a JSON Lines file that is read as text, and decoded here
FORMAT_VERSION = 2  # part of the cache's key: raise it when examples change
# Causes of dropped rows that others speak of.
MALFORMED, UNTRAINED, PROMPT_TOO_LONG = "malformed JSON", "no trainable token", "prompt too long"
EQUAL, EQUAL_AFTER_CUT = "equal answers", "equal answers after the cut"
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "chat": ("input_ids", "spans"),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
}


def decode_line(line: str) -> dict[str, Any]:
    """A JSON object from a line of a JSON Lines file."""
    try:
        row = json.loads(line.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise BadRow(MALFORMED, str(error)) from error
    if not isinstance(row, dict):
        raise BadRow(MALFORMED, f"expected an object, got {type(row).__name__}")
    return row


@dataclass(frozen=True)
class Encoder:
    """Turns a batch of rows into columns of examples; called by `datasets.map`, in several processes if asked.

    Args:
        template: Renders and tokenises.
        kind: `chat` for SFT, `preference` for pairs.
        max_length: Longest sequence in tokens; for pairs, of the prompt and either answer together.
    """

    template: ChatTemplate
    kind: Kind
    max_length: int

    def __call__(self, rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Columns of examples, one per row; `problem` is empty where the row is good."""
        names = list(rows)
        records = [self.parse(dict(zip(names, values, strict=True))) for values in zip(*rows.values(), strict=True)]
        texts = [self.texts(record) for record in records]
        ids = iter(self.template.encode([text for row in texts if isinstance(row, list) for text, _ in row]))
        examples = []
        for index, record, row in zip(indices, records, texts, strict=True):
            example = self.empty(index)
            try:
                if isinstance(row, BadRow):
                    raise row
                pieces = [(next(ids), trained) for _, trained in row]
                example |= self.chat_example(pieces) if self.kind == "chat" else self.pair_example(pieces)
                assert not isinstance(record, BadRow)
                example["control"] = len(self.control_texts(record))
            except BadRow as bad:
                example |= {"problem": bad.cause, "detail": bad.detail}
            examples.append(example)
        return {name: [example[name] for example in examples] for name in examples[0]}

    def parse(self, row: dict[str, Any]) -> Conversation | Preference | BadRow:
        """A record, or what is wrong with the row."""
        try:
            # Arrow fills keys that a row lacks with nulls; in JSON a null is the author's.
            row = decode_line(row[RAW]) if RAW in row else {name: drop_nulls(value) for name, value in row.items()}
            return to_conversation(row) if self.kind == "chat" else to_preference(row)
        except BadRow as bad:
            return bad

    def texts(self, record: Conversation | Preference | BadRow) -> list[tuple[str, bool]] | BadRow:
        """The pieces of text to tokenise, each with whether it is trained."""
        if isinstance(record, BadRow):
            return record
        try:
            if isinstance(record, Conversation):
                pieces = [(text, trained) for text, trained in self.template.segments(record)]
            else:
                pair = self.template.pair_segments(record)
                pieces = [(pair.prompt, False), (pair.chosen, True), (pair.rejected, True)]
            "".join(text for text, _ in pieces).encode()  # the tokenizer refuses a lone surrogate
        except BadRow as bad:
            return bad
        except UnicodeEncodeError as error:
            return BadRow("text is not valid Unicode", f"a lone surrogate at character {error.start}")
        return pieces

    def chat_example(self, pieces: list[tuple[list[int], bool]]) -> dict[str, Any]:
        """Ids of the whole chat and the trained spans [start, end), flat; cut on the right to `max_length`."""
        ids: list[int] = []
        spans: list[int] = []
        for piece, trained in pieces:
            if trained:
                spans += [len(ids), len(ids) + len(piece)]
            ids += piece
        kept = min(len(ids), self.max_length)
        # Token 0 has no prefix: nothing can predict it.
        clipped = [
            (max(start, 1), min(end, kept)) for start, end in zip(spans[::2], spans[1::2], strict=True) if start < kept
        ]
        trained_spans = [(start, end) for start, end in clipped if start < end]
        if not trained_spans:
            raise BadRow(UNTRAINED, f"the first answer starts at token {spans[0]}, and max_length is {self.max_length}")
        last = trained_spans[-1][1]  # what stands behind the last trained token changes nothing
        num_trained = sum(end - start for start, end in trained_spans)
        return {
            "input_ids": ids[:last],
            "spans": [border for span in trained_spans for border in span],
            "length": last,
            "trained": num_trained,
            "cut": kept < len(ids),
        }

    def pair_example(self, pieces: list[tuple[list[int], bool]]) -> dict[str, Any]:
        """Ids of prompt, chosen and rejected; both answers are cut on the right to what the prompt leaves."""
        (prompt, _), (chosen, _), (rejected, _) = pieces
        if not prompt:
            raise BadRow("empty prompt", "the prompt has no tokens: there is nothing to answer")
        room = self.max_length - len(prompt)
        if room < 1:
            raise BadRow(PROMPT_TOO_LONG, f"the prompt has {len(prompt)} tokens, and max_length is {self.max_length}")
        if chosen == rejected:
            raise BadRow(EQUAL, "`chosen` and `rejected` are the same text: there is nothing to prefer")
        cut = max(len(chosen), len(rejected)) > room
        chosen, rejected = chosen[:room], rejected[:room]
        if chosen == rejected:
            raise BadRow(EQUAL_AFTER_CUT, f"the answers differ only behind {room} tokens")
        return {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "length": len(prompt) + len(chosen) + len(rejected),
            "trained": len(chosen) + len(rejected),
            "cut": cut,
        }

    def control_texts(self, record: Conversation | Preference) -> list[str]:
        """Special tokens that stand as text in the record's messages."""
        if isinstance(record, Conversation):
            return self.template.control_texts(record.messages)
        return self.template.control_texts([*record.prompt, record.chosen, record.rejected])

    def empty(self, index: int) -> dict[str, Any]:
        """An example without tokens; `row` is the row's number in the split, counted from 0."""
        ids: dict[str, Any] = {name: [] for name in COLUMNS[self.kind]}
        return ids | {"length": 0, "trained": 0, "cut": False, "control": 0, "row": index, "problem": "", "detail": ""}
