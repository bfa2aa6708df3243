"""Samples become WebDataset shards with their indexes; the same samples the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.bars import bar
from oneflow_dist.data.index import edges_sha256, encode_index, file_sha256
from oneflow_dist.files import claim, write_whole
from oneflow_dist.precompute.writer import TarWriter
from oneflow_dist.prepare.samples import KINDS, Kind, Picture, Sample

TRAIN, HELD_OUT = "train", "heldout"
MAX_SAMPLES, MAX_BYTES = 4096, 128 << 20  # of a shard: its samples, and the pictures in it
RESERVED = ("segments", "messages", "conversations", "question", "answer")  # fields that say what shape a sample has

Placed = tuple[Sample, Callable[[Picture], bytes]]  # with what reads its PNGs


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """A shard that is to be written."""

    name: str
    kind: Kind
    split: str
    samples: list[Placed]


def plan_shards(samples: Sequence[tuple[Placed, bool]]) -> list[ShardPlan]:
    """The shards of all samples, each of which is held out or not; those of several kinds have its name in theirs."""
    kinds = [kind for kind in KINDS if any(placed[0].kind == kind for placed, _ in samples)]
    plans = []
    for kind in kinds:
        for split in (TRAIN, HELD_OUT):
            own = [placed for placed, held in samples if placed[0].kind == kind and held == (split == HELD_OUT)]
            prefix = f"{kind}-{split}" if len(kinds) > 1 else split
            plans += [
                ShardPlan(name=f"{prefix}-{number:06d}.tar", kind=kind, split=split, samples=stretch)
                for number, stretch in enumerate(_fill(own))
            ]
    return plans


def count_captions(samples: Sequence[Sample]) -> int:
    """The most that a picture has."""
    return max((len(sample.captions) for sample in samples), default=0)


def caption_fields(num_captions: int) -> list[str]:
    """How a mixture names the captions of a picture: the first is the .txt."""
    return ["txt", *(f"caption_{number}" for number in range(2, num_captions + 1))]


def write_shards(folder: Path, plans: Sequence[ShardPlan], num_captions: int, header: dict[str, Any]) -> None:
    """Write all that are not there.

    Raises:
        OSError: one cannot be written.
    """
    todo = [plan for plan in plans if not (folder / plan.name).exists()]
    for plan in bar(todo, desc="writing", unit="shard", disable=not todo):
        _write_shard(folder / plan.name, plan, num_captions, header)


def sample_files(sample: Sample, num_captions: int, read: Callable[[Picture], bytes]) -> Iterator[tuple[str, bytes]]:
    """The files of a sample by extension."""
    if sample.kind in ("pairs", "pictures"):
        if sample.captions:
            yield "txt", _encode(sample.captions[0])
        yield "json", _encode_json(_pair_fields(sample, num_captions))
        yield "png", read(sample.pictures[0])
    elif sample.kind == "texts" and not sample.fields:
        yield "txt", _encode("\n\n".join(sample.texts))
    else:
        yield "json", _encode_json(_fields(sample) | _shape(sample))
        for number, picture in enumerate(sample.pictures):
            yield f"{number}.png", read(picture)


def _fill(samples: Sequence[Placed]) -> Iterator[list[Placed]]:
    shard: list[Placed] = []
    num_bytes = 0
    for placed in samples:
        size = sum(picture.length for picture in placed[0].pictures)
        if shard and (len(shard) == MAX_SAMPLES or num_bytes + size > MAX_BYTES):
            yield shard
            shard, num_bytes = [], 0
        shard.append(placed)
        num_bytes += size
    if shard:
        yield shard


def _write_shard(path: Path, plan: ShardPlan, num_captions: int, header: dict[str, Any]) -> None:
    claimed = claim(path, wait=True)
    if claimed is None:
        return
    with claimed:
        writer = TarWriter(claimed.file, header)
        for sample, read in plan.samples:
            for extension, content in sample_files(sample, num_captions, read):
                writer.add(sample.key, extension, content)
        writer.close()
        size = claimed.file.seek(0, 2)
        sha256, edges = file_sha256(claimed.file), edges_sha256(claimed.file, size)
        write_whole(path.with_name(f"{path.name}.index"), encode_index(writer.contents, size, sha256, edges))
        claimed.commit()


def _pair_fields(sample: Sample, num_captions: int) -> dict[str, Any]:
    """With every caption that a mixture may ask for: pictures that have fewer say theirs again."""
    picture, captions = sample.pictures[0], sample.captions
    own = {name: captions[place % len(captions)] for place, name in enumerate(caption_fields(num_captions)) if captions}
    return {"width": picture.width, "height": picture.height, **_fields(sample), **dict(list(own.items())[1:])}


def _fields(sample: Sample) -> dict[str, Any]:
    renamed = {f"source_{name}" if name in RESERVED else name: value for name, value in sample.fields.items()}
    return {"name": sample.name, **renamed}


def _shape(sample: Sample) -> dict[str, Any]:
    """How a document or a conversation stands in a .json."""
    turns = [
        (
            role,
            [
                {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": f"{p}.png"}
                for p in parts
            ],
        )
        for role, parts in sample.turns
    ]
    if sample.kind == "conversations":
        return {"messages": [{"role": role, "content": parts} for role, parts in turns]}
    return {"segments": [part for _, parts in turns for part in parts]}


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _encode_json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace")  # what UTF-8 cannot say becomes an escape of JSON
