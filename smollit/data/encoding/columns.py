"""The columns of one example from the tokens of a row that are kept."""

from typing import Any

from smollit.data.encoding.truncate import Draft
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Kind
from smollit.data.template.jinja import Span
from smollit.data.template.tokenize import Branch

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "chat": ("input_ids", "spans"),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
}


def chat_example(draft: Draft, kept: list[Span], max_length: int) -> dict[str, Any]:
    """Ids of the chat, and the trained spans [start, end), flat."""
    ids: list[int] = []
    spans: list[list[int]] = []
    message = -1  # of the last span: control text in an answer divides it into segments, which are one span
    for segment, tokens, (start, end) in zip(draft.segments, draft.ids, kept, strict=True):
        place = len(ids)
        ids += tokens[start:end]
        first = max(place, 1)  # token 0 has no prefix: nothing can predict it
        if segment.in_loss and first < len(ids):
            if segment.message == message and spans[-1][1] == first:
                spans[-1][1] = len(ids)
            else:
                spans.append([first, len(ids)])
            message = segment.message
    if not spans:
        before = next((n for n, segment in enumerate(draft.segments) if segment.in_loss), 0)
        start = sum(len(tokens) for tokens in draft.ids[:before])
        if start < max_length:  # so it is the row's first token, alone
            raise BadRow(
                DropReason.NO_LOSS_TOKENS, "what is to be trained has one token, the row's first: nothing predicts it"
            )
        raise BadRow(
            DropReason.NO_LOSS_TOKENS, f"the first answer starts at token {start}, and max_length is {max_length}"
        )
    return {
        "input_ids": ids,
        "spans": [border for span in spans for border in span],
        "length": len(ids),
        "trained": sum(end - start for start, end in spans),
        "cut": is_cut(draft, kept),
    }


def pair_example(draft: Draft, kept: list[Span], max_length: int) -> dict[str, Any]:
    """Ids of prompt, chosen and rejected."""
    if not draft.size("shared"):
        raise BadRow(DropReason.EMPTY_PROMPT, "the prompt has no tokens: there is nothing to answer")
    prompt, chosen, rejected = (joined(draft, kept, branch) for branch in ("shared", "chosen", "rejected"))
    if chosen == rejected:
        whole = [(0, len(ids)) for ids in draft.ids]
        if joined(draft, whole, "chosen") == joined(draft, whole, "rejected"):
            raise BadRow(DropReason.IDENTICAL, "`chosen` and `rejected` are the same text: there is nothing to prefer")
        raise BadRow(DropReason.IDENTICAL_AFTER_CUT, f"the answers differ only behind {len(chosen)} tokens")
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": len(prompt) + len(chosen) + len(rejected),
        "trained": len(chosen) + len(rejected),
        "cut": is_cut(draft, kept),
    }


def joined(draft: Draft, kept: list[Span], branch: Branch) -> list[int]:
    """The kept ids of a branch."""
    found: list[int] = []
    for segment, ids, (start, end) in zip(draft.segments, draft.ids, kept, strict=True):
        if segment.branch == branch:
            found += ids[start:end]
    return found


def is_cut(draft: Draft, kept: list[Span]) -> bool:
    """Whether the row lost turns or tokens to `max_length`."""
    return bool(draft.turns_cut) or sum(end - start for start, end in kept) < sum(map(len, draft.ids))
