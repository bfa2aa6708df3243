"""The shapes in which documents and conversations stand in a .json, each read as segments with a role."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneflow_dist.data.tokenizer import ROLES

ROLE_OF = {
    **{role: role for role in ROLES},
    "human": "user",
    "question": "user",
    "gpt": "assistant",
    "answer": "assistant",
}
PLACE = "<image>"  # of the next picture, in a value of LLaVA's
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell one alone, and there are no bytes of it
MARK = "\ufeff"  # of byte order, with which some editors begin a file of text


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of text, or the name of a piece: its member without the last extension, "" in a pair."""

    text: str | None = None
    piece: str | None = None
    kind: str = ""  # its modality; "" leaves it to the kind of its file
    role: str = "user"  # whose turn it is of; segments of one role that follow each other are one turn


def read_document(fields: Mapping[str, Any], names: Sequence[str]) -> list[Segment] | None:
    """What stands in `segments`, `messages` or `conversations`; None where the .json has none of them.

    Args:
        names: of the pieces that the sample holds, in the order of its files.

    Raises:
        ValueError: not of the shape, an unknown role, two turns of one role in a row, a turn without content, no turn
            of the assistant, or pieces that are not each named once.
    """
    shape = next((shape for shape in ("segments", "messages", "conversations") if shape in fields), None)
    if shape is None:
        return None
    entries, unnamed = fields[shape], list(names)
    if not isinstance(entries, list):
        raise ValueError(f"{shape} is {entries!r}, not a list; write it again")
    if shape == "segments":
        segments = [_read_part(entry, _find_role(entry, "role", "user"), unnamed) for entry in entries]
    elif shape == "messages":
        segments = _join_turns([_read_message(entry, unnamed) for entry in entries])
    else:
        segments = _join_turns(_read_values(entries, fields.get("image"), names))
    named = [segment.piece for segment in segments if segment.piece is not None]
    if sorted(named) != sorted(names):
        raise ValueError(
            f"its {shape} name {len(named)} pieces ({', '.join(named)}) but it holds {len(names)} "
            f"({', '.join(names)}); name each once"
        )
    return [segment for segment in segments if segment.piece is not None or segment.text]


def clean(text: str) -> str:
    """Without a byte order mark at its start; half a surrogate pair becomes U+FFFD."""
    if HALF.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.removeprefix(MARK)


Turn = tuple[str, list[Segment]]  # its role, and what has content of it


def _join_turns(turns: list[Turn]) -> list[Segment]:
    """The segments of all turns; a system turn without content says nothing and is left out."""
    turns = [(role, parts) for role, parts in turns if parts or role != "system"]
    for number, (role, parts) in enumerate(turns, start=1):
        if not parts:
            raise ValueError(f"turn {number} ({role}) has neither text nor a piece; write it or remove the sample")
    for number, ((before, _), (after, _)) in enumerate(itertools.pairwise(turns), start=1):
        if before == after:
            raise ValueError(f"turns {number} and {number + 1} are both of role {after}; join them into one")
    if not any(role == "assistant" for role, _ in turns):
        raise ValueError(f"no turn of the assistant among {len(turns)}; write its answer or remove the sample")
    return [segment for _, parts in turns for segment in parts]


def _read_message(entry: Any, unnamed: list[str]) -> Turn:
    """OpenAI's: `role`, and `content` that is text or a list of texts and pieces."""
    role = _find_role(entry, "role")
    content = entry.get("content")
    if isinstance(content, list):
        parts = [_read_part(part, role, unnamed) for part in content]
    elif isinstance(content, str) or content is None:
        parts = [Segment(text=clean(content or ""), role=role)]
    else:
        raise ValueError(f"content {content!r} is neither text nor a list; write it again")
    return role, _with_content(parts)


def _read_values(entries: list[Any], image: Any, names: Sequence[str]) -> list[Turn]:
    """LLaVA's and ShareGPT's: `from`, and `value`, in which `<image>` is a picture where the sample has any."""
    images = [image] if isinstance(image, str) else names if image is None else image
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
        raise ValueError(f"image is {image!r}, neither a file name nor a list of them; write it again")
    if image is not None:
        for each in images:
            _check_member(each)
        # One picture is it, whatever it was called where the sample comes from.
        images = list(names) if len(images) == len(names) == 1 else [_name_of(each) for each in images]
    turns: list[Turn] = []
    places, count = iter(images), 0
    for entry in entries:
        role = _find_role(entry, "from")
        value = entry.get("value")
        if not isinstance(value, str):
            raise ValueError(f"value is {value!r}, not text; write it again")
        stretches = clean(value).split(PLACE) if images else [clean(value)]
        parts = [Segment(text=stretches[0], role=role)]
        for text in stretches[1:]:
            count += 1
            parts += [Segment(piece=next(places, ""), kind="image", role=role), Segment(text=text, role=role)]
        turns.append((role, _with_content(parts)))
    if count != len(images):
        raise ValueError(f"{count} {PLACE} in its conversations, but {len(images)} images; write one for each")
    return turns


def _with_content(parts: list[Segment]) -> list[Segment]:
    """Texts without blanks around them; those that were only blanks go."""
    stripped = [
        part if part.text is None else Segment(text=part.text.strip(), kind=part.kind, role=part.role) for part in parts
    ]
    return [part for part in stripped if part.piece is not None or part.text]


def _read_part(entry: Any, role: str, unnamed: list[str]) -> Segment:
    """A text, or a piece by its name; of messages a piece without one is the first that was not named yet."""
    kind = entry.get("type") if isinstance(entry, dict) else None
    value = entry.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        kind, value = "image", value.get("url") if isinstance(value, dict) else value
    if kind == "image" and value is None and unnamed:
        return Segment(piece=unnamed.pop(0), kind=kind, role=role)
    if not isinstance(kind, str) or not isinstance(value, str):
        raise ValueError(f"segment {entry!r} is neither text nor a piece; write the sample again")
    if kind == "text":
        return Segment(text=clean(value), role=role)
    _check_member(value)
    name = _name_of(value)
    if name in unnamed:
        unnamed.remove(name)
    return Segment(piece=name, kind=kind, role=role)


def _find_role(entry: Any, key: str, default: str | None = None) -> str:
    found = entry.get(key, default) if isinstance(entry, dict) else default
    if not isinstance(found, str) or found not in ROLE_OF:
        raise ValueError(f"{key} is {found!r} in {entry!r:.80}, not one of {', '.join(ROLE_OF)}; write one")
    return ROLE_OF[found]


def _name_of(file: str) -> str:
    return file.lower().rpartition(".")[0]


def _check_member(name: str) -> None:
    if REMOTE.match(name):
        raise ValueError(f"the image {name[:60]!r} is no member of the sample; store it there, as 0.png, and name that")
