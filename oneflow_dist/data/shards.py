"""WebDataset tar shards, read at random through the offsets of their members."""

from __future__ import annotations

import glob
import mmap
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import braceexpand

from oneflow_dist.containers import ShardRecord

EXTENSIONS = ("txt", "json", "png", "jpg", "jpeg", "webp")  # what is read; nothing else is, and nothing is unpickled


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file of a sample lies in its tar."""

    extension: str
    offset: int
    size: int


@dataclass(slots=True)
class ShardSet:
    """The samples of many shards, in shard order; opened again after a fork or pickling."""

    source: str
    paths: list[Path]
    keys: list[str]  # of each sample
    shard_of: list[int]
    members: list[tuple[Member, ...]]
    _maps: dict[int, mmap.mmap] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.source, self.paths, self.keys, self.shard_of, self.members)

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        """The key that messages and random numbers know a sample by."""
        return f"{self.source}/{self.paths[self.shard_of[index]].stem}/{self.keys[index]}"

    def read(self, index: int) -> ShardRecord:
        """The encoded files of one sample."""
        shard = self.shard_of[index]
        if shard not in self._maps:
            with self.paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._maps[shard]
        files = {m.extension: data[m.offset : m.offset + m.size] for m in self.members[index]}
        return ShardRecord(key=self.name(index), files=files)


def open_shards(source: str, pattern: str) -> ShardSet:
    """Index the tars of a brace or wildcard pattern: all members with one key are one sample.

    Raises:
        ValueError: a shard is missing, is no tar, is cut off, or holds nothing to read.
    """
    paths = [Path(match) for part in braceexpand.braceexpand(pattern) for match in _expand(source, part)]
    shards = ShardSet(source, paths, [], [], [])
    for number, path in enumerate(paths):
        samples: dict[str, list[Member]] = {}
        for key, member in _list_members(source, path):
            samples.setdefault(key, []).append(member)
        for key, members in samples.items():
            shards.keys.append(key)
            shards.shard_of.append(number)
            shards.members.append(tuple(members))
    if not shards.keys:
        raise ValueError(
            f"source {source}: no samples in {pattern}; a sample is members with one key, as 0001.png + 0001.txt"
        )
    return shards


def _expand(source: str, part: str) -> list[str]:
    found = sorted(glob.glob(part))  # noqa: PTH207 - an absolute pattern is not for Path.glob
    if not found:
        raise ValueError(f"source {source}: no such shard {part}; write the shards first or mend the mixture's pattern")
    return found


def _list_members(source: str, path: Path) -> list[tuple[str, Member]]:
    """(sample key, member) of every file that is read, in tar order."""
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if info.isfile() and extension.lower().rpartition(".")[2] in EXTENSIONS:
                    key = f"{folder}/{stem}" if folder else stem
                    found.append((key, Member(extension.lower(), info.offset_data, info.size)))
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{source}/{path.name}: not a readable tar: {error}; write this shard again") from error
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # what follows the last member of a whole tar
            raise ValueError(f"{source}/{path.name}: cut off or damaged at byte {end}; copy or write this shard again")
    return found
