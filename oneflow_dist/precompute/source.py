"""What a raw shard holds: its samples in order, and which of them cannot be whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from oneflow_dist.data.index import file_sha256
from oneflow_dist.data.shards import is_remote, list_shards, read_at
from oneflow_dist.data.tar import IMAGE_EXTENSIONS, Member, TarContents, scan_tar, split_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSample:
    """The files of one sample, not read yet."""

    key: str
    members: list[Member]
    refusal: str | None  # why it cannot be used, whatever its files hold

    @property
    def num_images(self) -> int:
        return sum(is_picture(member) for member in self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawShard:
    """An open shard of pictures and text."""

    path: Path
    file: BinaryIO
    num_bytes: int
    samples: list[RawSample]
    damage: list[str]  # stretches in which no name is readable
    unread: Counter[str]  # files of other kinds, see `TarContents`

    def read(self, sample: RawSample) -> dict[str, bytes]:
        """The files of a sample by extension; from any thread.

        Raises:
            ValueError: the shard was cut off since it was opened.
            OSError: it cannot be read.
        """
        descriptor, where = self.file.fileno(), f"{self.path}, sample {sample.key}"
        return {member.extension: read_at(descriptor, member.offset, member.size, where) for member in sample.members}

    def describe(self) -> dict[str, Any]:
        """What the header of its output says of it; reads all of it."""
        return {"name": self.path.name, "bytes": self.num_bytes, "sha256": file_sha256(self.file)}


def list_raw(patterns: list[str]) -> list[Path]:
    """The tars of brace and wildcard patterns, in order.

    Raises:
        ValueError: there is none, or two have one name.
    """
    if not patterns:
        raise ValueError("shards: none named; name them before the output folder, as 'raw/*.tar'")
    names = [name for pattern in patterns for name in list_shards("raw", pattern)]
    for name in filter(is_remote, names):
        raise ValueError(f"{name}: raw shards are read from a local disk; copy it there first")
    paths = [Path(name) for name in names]
    name, times = Counter(path.name for path in paths).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{name}: {times} shards have this name; name each once, other folders in runs of their own")
    return paths


def open_raw(path: Path) -> RawShard:
    """Scan a shard; damage leaves what is around it readable."""
    num_bytes = path.stat().st_size
    file = path.open("rb")
    contents = scan_tar(file, num_bytes)
    refusals = _find_refusals(contents)
    members: dict[str, list[Member]] = {}
    for member in contents.members:
        members.setdefault(member.key, []).append(member)
    keys = list(dict.fromkeys([*members, *refusals]))
    return RawShard(
        path=path,
        file=file,
        num_bytes=num_bytes,
        samples=[RawSample(key=key, members=members.get(key, []), refusal=refusals.get(key)) for key in keys],
        damage=[fault.reason for fault in contents.faults if not fault.name],
        unread=contents.unread,
    )


def is_picture(member: Member) -> bool:
    """Whether a member is to be encoded."""
    return member.extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def _find_refusals(contents: TarContents) -> dict[str, str]:
    """Reasons by key, the first of each."""
    found: dict[str, str] = {}
    for fault in contents.faults:
        if fault.name:
            found.setdefault(split_name(fault.name)[0], f"{fault.name}: {fault.reason}")
    for pickle in contents.pickles:
        found.setdefault(pickle.key, f"it holds a pickle ({pickle.extension}), which could run code when it is read")
    for key, reason in _find_torn(contents).items():
        found.setdefault(key, reason)
    return found


def _find_torn(contents: TarContents) -> dict[str, str]:
    """Samples beside a damage that lack what all others have: their text alone could pass for a sample of text."""
    beside: dict[str, int] = {}
    for damage in (fault.offset for fault in contents.faults if not fault.name):
        before = [member for member in contents.members if member.offset < damage]
        after = [member for member in contents.members if member.offset >= damage]
        beside |= {member.key: damage for member in [*before[-1:], *after[:1]]}
    kinds: dict[str, set[str]] = {}
    for member in contents.members if beside else []:
        kinds.setdefault(member.key, set()).add("picture" if is_picture(member) else member.extension)
    others = [kinds[key] for key in kinds.keys() - beside.keys()]
    usual = set[str].intersection(*others) if others else set()
    return {
        key: f"its {min(missing)} is missing, and the shard is damaged beside it, at byte {damage}"
        for key, damage in beside.items()
        if (missing := usual - kinds[key])
    }
