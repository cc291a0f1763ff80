"""Format: how the rows of a split are read, and which parts each format has; Fields: a row seen through its format."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages.contents import parse_text
from smollit.data.formats.messages.parse import parse_turns
from smollit.data.formats.messages.roles import ALIASES, Roles
from smollit.data.formats.ranking import PairsOf, Ranking
from smollit.data.formats.types import Kind, Message, shown
from smollit.data.sources.columns import JOIN, heads, value_at
from smollit.data.sources.converter import Converter
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import FormatName

Parts = dict[str, str]  # part -> column
SCORES = ("score_chosen", "score_rejected")
TOGETHER = (SCORES, ("id", "parent"))  # parts that say something only beside each other
VARIABLES = ("tools", "chat_template_kwargs")  # what the chat template gets besides messages
# Parts that are read also where the first rows lack their column.
OPTIONAL = ("system", "history", "context", "input", *VARIABLES)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# The columns of a part without a mapping, in any case: the first of these that is there.
USUAL = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "problem", "article"),
    "completion": ("completion", "response", "solution", "answer", "generation", "summary"),
    "output": ("output", "response", "completion", "answer"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
    "chosen": ("chosen", "chosen_response", "preferred_output"),
    "rejected": ("rejected", "rejected_response", "non_preferred_output"),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
    "text": ("text", "content"),
    "role": ("role", "speaker", "author", "sender", "from"),
    "thread": ("conversation_id", "thread_id", "thread"),
    "id": ("message_id", "id"),
    "parent": ("parent_id", "parent"),
}


class Layout(NamedTuple):
    """The parts that a format needs, and those that it may have."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


# In the order of precedence: the first format that fits is used.
LAYOUTS: dict[Kind, dict[FormatName, Layout]] = {
    "chat": {
        "sharegpt": Layout(("messages",), ("system", *VARIABLES)),
        "messages": Layout(("messages",), ("system", *VARIABLES)),
        "thread": Layout(("role", "text"), ("id", "parent", "thread")),
        "prompt_completion": Layout(("prompt", "completion"), ("context", "history", "system", *VARIABLES)),
        "alpaca": Layout(("instruction", "output"), ("input", "history", "system", *VARIABLES)),
        "dialogue": Layout(("text",), ("system", *VARIABLES)),
        "text": Layout(("text",)),
    },
    "preference": {
        "ranked": Layout(("responses", "chosen_if"), ("prompt", "history", "system", *VARIABLES)),
        "dialogue": Layout(("chosen", "rejected"), ("prompt", "system", *SCORES, *VARIABLES)),
        "preference": Layout(("chosen", "rejected"), ("prompt", "context", "history", "system", *SCORES, *VARIABLES)),
        "thread": Layout(("role", "text", "id", "parent", "chosen_if")),
        "unpaired": Layout(("chosen_if",), ("prompt", "history", "completion", "messages", "system")),
    },
}
GROUPED = ("thread", "unpaired")  # formats whose rows are grouped before they are read


def parts_of(kind: Kind, name: FormatName) -> tuple[str, ...]:
    """All parts of a format."""
    layout = LAYOUTS[kind][name]
    return layout.needs + layout.may


@dataclass(frozen=True)
class Format:
    """How the rows of a split are read.

    Args:
        name: The format.
        kind: What its rows become.
        columns: The column of each part, such as {"messages": "conversations"}.
        roles: Which roles its messages may have, and whether ShareGPT's keys and names are read.
        seen: Names of roles in the first rows that are read as other roles.
        late: Names of the columns of parts that the first rows lack: JSON has other keys in each row.
        known: Columns of the first rows, and those that the user maps to nothing.
        unused: Columns that no part uses.
        media: Names of columns of images, videos and sounds, which can't be read.
        labels: Names, in lower case, of labels of completions of which the first rows have no value.
        ranking: Which of several responses is preferred; None where a format says it itself.
        pairs_of: Which pairs are made of several responses.
        convert: Turns each row into one of this format before it is read; None leaves rows as they are.
    """

    name: FormatName
    kind: Kind
    columns: Parts
    _: KW_ONLY
    roles: Roles = field(default_factory=Roles)
    seen: tuple[str, ...] = ()
    late: dict[str, tuple[str, ...]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    labels: frozenset[str] = frozenset()
    ranking: Ranking | None = None
    pairs_of: PairsOf = "best-worst"
    convert: Converter | None = None

    @property
    def partly_used(self) -> list[str]:
        """The columns into which parts are paths."""
        paths = [path for column in self.columns.values() for path in heads(column) if "." in path]
        return list(dict.fromkeys(path.split(".")[0] for path in paths))

    @property
    def has_scores(self) -> bool:
        """Whether pairs have the columns of both scores."""
        return self.columns.keys() >= set(SCORES)

    def describe(self) -> str:
        """One sentence for the user about how the rows are read."""
        said = [self._main_columns()]
        if self.convert:
            said.append(f"rows from {self.convert.name}")
        if self.seen:
            said.append("roles " + ", ".join(f"{name} -> {ALIASES[name.strip().lower()]}" for name in self.seen))
        if "system" in self.columns:
            said.append(f"system text from `{self.columns['system']}`")
        if given := [f"`{self.columns[part]}`" for part in VARIABLES if part in self.columns]:
            said.append("given to the chat template: " + " and ".join(given))
        if self.has_scores:
            said.append("scores from " + " and ".join(f"`{self.columns[part]}`" for part in SCORES))
        if self.ranking:
            said.append(f"chosen if {self.ranking.text}, pairs of {self.pairs_of}")
        if self.roles.extra:
            said.append("extra roles " + ", ".join(self.roles.extra))
        if self.unused:
            said.append("columns not used: " + listed(self.unused))
        return "; ".join(said)

    def _main_columns(self) -> str:
        """The format's name, and what it does with its columns."""
        columns = {part: f"`{column}`" for part, column in self.columns.items()}
        match self.name:
            case "messages" | "sharegpt":
                name = "ShareGPT" if self.name == "sharegpt" else "Messages"
                keys = "from/value or role/content" if self.roles.sharegpt else "role/content"
                return f"{name}: {columns['messages']} ({keys})"
            case "prompt_completion":
                context, loss = columns["prompt"], columns["completion"]
                before = f"{columns['context']} and " if "context" in columns else ""
                is_are = "are" if before else "is"
                return f"Prompt and completion: {before}{context} {is_are} context, {loss} has the loss tokens"
            case "alpaca":
                asked = " and ".join(columns[part] for part in ("instruction", "input") if part in columns)
                before = f", after the turns of {columns['history']}" if "history" in columns else ""
                return f"Alpaca: {asked} as the user turn, {columns['output']} as the assistant turn{before}"
            case "thread":
                place = f"below {columns['parent']}" if "parent" in columns else f"in the order of {columns['thread']}"
                return f"Messages of threads: {columns['text']} of {columns['role']}, {place}"
            case "unpaired":
                if "messages" in columns:
                    return (
                        f"Rated responses: the last turns of {columns['messages']} of rows with the same turns before"
                    )
                return f"Rated responses: {columns['completion']} of rows with the same {columns['prompt']}"
            case "ranked":
                prompt = columns.get("prompt", "their common turns")
                return f"Several responses: {columns['responses']}, prompt from {prompt}"
            case "text":
                return f"Plain text: {columns['text']}, every token is a loss token and no chat template is used"
            case "dialogue" if self.kind == "chat":
                return f"Human/Assistant dialogues: {columns['text']}"
            case _:
                name = "Human/Assistant dialogues in pairs" if self.name == "dialogue" else "Preference pairs"
                prompt = f"prompt from {columns['prompt']}" if "prompt" in columns else "prompt from their common turns"
                return f"{name}: {columns['chosen']} over {columns['rejected']}, {prompt}"


@dataclass(frozen=True)
class Fields:
    """A row seen through its format.

    Args:
        row: Columns and their values.
        columns: The column of each part.
        roles: Which roles its messages may have.
        late: Names that the column of a part without one may have in this row.
    """

    row: Row
    columns: dict[str, str]
    roles: Roles
    late: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def name(self, part: str) -> str:
        """The name of the part's column, for errors."""
        return self.columns.get(part, part)

    def get(self, part: str) -> Any:
        """The value, or None if the part has no column or the row no value."""
        column = self.columns.get(part) or next(filter(self.row.__contains__, self.late.get(part, ())), None)
        if column is None:
            return None
        value = self.row.get(column)
        return _value_of(self.row, column) if value is None and not column.isidentifier() else value

    def need(self, part: str) -> Any:
        """The value, which must not be null."""
        value = self.get(part)
        if value is None:
            have = ", ".join(sorted(map(shown, self.row))[:20]) or "none"
            name = self.name(part)
            raise BadRow(DropReason.MISSING_VALUE, f"the column `{name}` is null or missing (columns: {have})")
        return value

    def text(self, part: str) -> str:
        """The text, which is empty if the part has no column, the row no value, or only whitespace."""
        value = self.get(part)
        text = "" if value is None else parse_text(value, self.name(part))
        return text if text.strip() else ""

    def turns(self, part: str, role: str) -> list[Message]:
        """The turns of a part that must not be null; a text is one turn of `role`."""
        return parse_turns(self.need(part), role, self.name(part), self.roles)


def _value_of(row: Row, column: str) -> Any:
    """The value of a dotted path, or the texts of several columns with an empty line between them."""
    if JOIN not in column:
        return value_at(row, column)
    values = [value_at(row, name) for name in column.split(JOIN)]
    said = [value for value in values if value is not None and not (isinstance(value, str) and not value.strip())]
    if len(said) == 1:
        return said[0]
    return "\n\n".join(parse_text(value, column) for value in said) or None


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas; of many, the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(name or "''" for name in names[:most]) or "(none)") + more
