"""Which format a split has: detected from its columns and first rows, or given by the user; errors if none fits."""

from collections.abc import Iterable
from difflib import get_close_matches

from smollit.data.formats.detection.advice import likely_prompt, one_message_a_row, why_not
from smollit.data.formats.detection.labels import is_good, late_labels
from smollit.data.formats.detection.split import Split, is_response_alone
from smollit.data.formats.format import LAYOUTS, MEDIA, Format, Parts, listed, parts_of
from smollit.data.formats.messages.roles import OddTurns, Roles
from smollit.data.formats.ranking import PairsOf, Ranking
from smollit.data.formats.types import Kind
from smollit.data.sources.columns import JOIN, has_column, heads
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import FormatName


def detect_format(
    columns: list[str],
    rows: list[Row],
    *,
    kind: Kind,
    format: FormatName = "auto",
    mapping: dict[str, str] | None = None,
    extra_roles: Iterable[str] = (),
    odd_turns: OddTurns = "drop",
    pairs_of: PairsOf = "best-worst",
    filtered: Iterable[str] = (),
    where: str = "the data set",
) -> Format:
    """The format of a split.

    Args:
        columns: Names of its columns.
        rows: Its first rows, which distinguish ShareGPT from messages, and dialogues from other texts.
        kind: What its rows must become.
        format: The format that the user wants, or `auto`.
        mapping: {part: column} for columns that are not named after their part; "" for a part or a column that is not
            to be used.
        extra_roles: Roles that messages may have besides system, user, assistant and tool.
        odd_turns: What happens to turns that follow their own kind.
        pairs_of: Which pairs are made of several responses.
        filtered: Columns by which `data.where` chooses rows.
        where: Name of the split in errors.

    Raises:
        ValueError: If no format fits, with the columns, what each format needs, and what to do.
    """
    split = Split(
        kind=kind,
        columns=columns,
        rows=rows,
        mapping=_read_mapping(mapping or {}, columns, kind, where),
        extra_roles=tuple(extra_roles),
        where=where,
    )
    fits = split.fitting(kind)
    if format == "auto":
        name = next((name for name in fits if split.looks_like(name)), None)
    else:
        name = format if format in fits else None
    if name is None:
        raise ValueError(why_not(split, format))
    used = split.used_parts(name)
    _check(split, name, used, set(filtered))
    ranking = _ranking(split, used.get("chosen_if"), pairs_of)
    may_be_labelled = kind == "chat" and name != "text"
    as_sharegpt = name in ("sharegpt", "thread") or (name != "messages" and split.is_sharegpt(used))
    roles = Roles(split.extra_roles, sharegpt=as_sharegpt, odd_turns=odd_turns)
    return Format(
        name,
        kind,
        {part: column for part, column in used.items() if part != "chosen_if"},
        roles=roles,
        seen=split.renamed_roles(used, roles),
        late=split.late_parts(name, used),
        known=frozenset((*columns, *(part for part, column in split.mapping.items() if not column))),
        unused=split.unused(used, set(filtered)),
        media=tuple(name for name in MEDIA if split.mapping.get(name) != ""),
        labels=late_labels(rows, filtered) if may_be_labelled and "label" not in split.mapping else frozenset(),
        ranking=ranking,
        pairs_of=pairs_of,
    )


def _read_mapping(mapping: dict[str, str], columns: list[str], kind: Kind, where: str) -> Parts:
    """The user's mapping, in which `conversations` is another name of the part `messages`.

    Raises:
        ValueError: If it names a part or a column that does not exist.
    """
    known = sorted(
        {part for kind in LAYOUTS for name in LAYOUTS[kind] for part in parts_of(kind, name)} | {"label", *MEDIA}
    )
    wanted = {"messages" if part == "conversations" else part: column for part, column in mapping.items()}
    for part, column in wanted.items():
        if part not in known and (column or part not in columns):
            raise ValueError(f"`data.columns` has the key {part!r}, which must be one of {', '.join(known)}")
        names = [] if part == "chosen_if" or column in columns else heads(column)
        missing = next((name for name in names if not has_column(columns, name)), None)
        if missing:
            near = get_close_matches(missing, columns, cutoff=0.4) or columns
            raise ValueError(
                f"`data.columns` maps `{part}` to the column {missing!r}, which {where} does not have."
                f" Nearest: {listed(near)}"
            )
    return _of_pairs(wanted, columns) if kind == "preference" else wanted


def _of_pairs(mapping: Parts, columns: list[str]) -> Parts:
    """The mapping with parts of pairs for Alpaca's: `instruction` and `input` are the prompt, `output` a completion."""
    own, taken = dict(mapping), {name for column in mapping.values() for name in heads(column)}
    if own.get("instruction") and "prompt" not in own:
        own["prompt"] = own.pop("instruction")
        if more := own.get("input", "input" if "input" in columns and "input" not in taken else ""):
            own["prompt"] += f"{JOIN}{more}"
            own.pop("input", None)
    if own.get("output") and "completion" not in own:
        own["completion"] = own.pop("output")
    return own


def _ranking(split: Split, chosen_if: str | None, pairs_of: PairsOf) -> Ranking | None:
    """Which of several responses is preferred.

    Raises:
        ValueError: If it reads a column that does not exist, or all pairs are asked for of single responses.
    """
    if chosen_if is None:
        if pairs_of == "all":
            raise ValueError(
                f"`data.pairs_of: all` is for prompts with several responses, and {split.where} has pairs: leave it"
                " out, or map `responses` and `chosen_if` in `data.columns`"
            )
        return None
    ranking = Ranking(chosen_if)
    missing = sorted(name for name in ranking.expression.names if not has_column(split.columns, name))
    if missing:
        raise ValueError(
            f"`data.columns.chosen_if` reads the column {missing[0]!r}, which {split.where} does not have. Its columns"
            f" are {listed(split.columns)}"
        )
    return ranking


# ---- errors


def _check(split: Split, name: FormatName, parts: Parts, filtered: set[str]) -> None:
    """Reject at once what would be misread: pairs without their prompt, bad completions, messages as texts."""
    if name in ("preference", "dialogue") and split.kind == "preference":
        _check_prompt(split, parts)
    label = split.label()
    if split.kind == "chat" and name != "text" and label and label not in filtered:
        values = split.values(label)
        raise ValueError(
            f"{split.where} has the column `{label}` ({', '.join(dict.fromkeys(map(str, values)))}), which says of each"
            f" completion whether it is a good one. `data.where: {is_good(label, values)}` takes the good ones,"
            " `data.columns: {label: ''}` all"
        )
    if name == "text" and (advice := one_message_a_row(split)):
        raise ValueError(f"{split.where} has the columns {listed(split.columns)}{advice}")


def _check_prompt(split: Split, parts: Parts) -> None:
    """Reject pairs at once whose responses come alone while no column holds the prompt."""
    responses = split.values(parts["chosen"])
    alone = [value for value in responses if is_response_alone(value)]
    if "prompt" not in parts and alone and len(alone) == len(responses):
        column = likely_prompt(split)
        raise ValueError(
            f"{split.where} has the columns {listed(split.columns)}: `{parts['chosen']}` holds responses without"
            " their prompt, and there is no `prompt`. "
            + (
                f"Name its column, such as `data.columns: {{prompt: {column}}}`"
                if column
                else "Give it a column of its own, as `data.convert` can: a common beginning of texts is not split off"
            )
        )
