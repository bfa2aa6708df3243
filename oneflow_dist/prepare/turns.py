"""Conversations: the segments of a .json become turns with their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oneflow_dist.data.conversations import ROLE_OF, Segment, read_document
from oneflow_dist.prepare.items import Blob

CONVERSATIONS = "conversations"  # the field of LLaVA's
Parts = tuple[str | Blob, ...]


def parts_of(segments: Sequence[Segment], pictures: Mapping[str, Blob]) -> Parts:
    """Texts and pictures in order; `pictures` by the name that a segment gives them."""
    return tuple(pictures[each.piece] if each.piece is not None else each.text or "" for each in segments)


def turns_of(segments: Sequence[Segment], pictures: Mapping[str, Blob]) -> tuple[tuple[str, Parts], ...]:
    """The same, by whose turn they are of."""
    turns: list[tuple[str, Parts]] = []
    for segment, part in zip(segments, parts_of(segments, pictures), strict=True):
        if turns and turns[-1][0] == segment.role:
            turns[-1] = (segment.role, (*turns[-1][1], part))
        else:
            turns.append((segment.role, (part,)))
    return tuple(turns)


def read_conversation(entry: Mapping[str, Any], pictures: Sequence[Blob]) -> tuple[tuple[str, Parts], ...]:
    """The turns of LLaVA's `conversations`, each `<image>` the next of `pictures`.

    Raises:
        ValueError: not of the shape, an unknown role, or not one place for each picture.
    """
    by_name = {str(number): picture for number, picture in enumerate(pictures)}
    names = {"image": [f"{name}.png" for name in by_name]} if by_name else {}
    return turns_of(read_document({CONVERSATIONS: entry[CONVERSATIONS], **names}, list(by_name)) or [], by_name)


def is_conversation(fields: Mapping[str, Any], segments: Sequence[Segment]) -> bool:
    """Whether anybody answers. A textbook has segments called answer too, but others that are nobody's turn."""
    entries = fields.get("segments", [])
    roles = {entry.get("role") for entry in entries if isinstance(entry, dict)} - {None}
    return roles <= ROLE_OF.keys() and any(segment.role == "assistant" for segment in segments)
