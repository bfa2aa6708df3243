"""The samples of many tar shards as one sequence: local ones read at random, remote ones fetched whole."""

from __future__ import annotations

import bisect
import glob
import hashlib
import itertools
import os
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import braceexpand

from oneflow_dist.bars import bar
from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.index import ShardIndex, decode_index, edges_sha256, file_sha256, read_or_write_index
from oneflow_dist.data.tar import describe_unread
from oneflow_dist.extras import require
from oneflow_dist.runtime import is_main

OWN_FILES = re.compile(  # that this package writes beside shards
    r".*\.(index|partial|report\.json)|settings\.json|manifest\.json|quarantine\.jsonl|contact_sheet\.png"
)
REMOTE_SHARDS_KEPT = 2  # per lane and source: the one in use and the next, on the local disk


class ShardSet:
    """The samples of many shards, in shard order. Files are opened when first read, in whichever process reads."""

    def __init__(self, source: str, paths: list[str], index_folder: str | None, indexes: list[ShardIndex]):
        self.source = source
        self.paths = paths
        self.index_folder = index_folder
        self.indexes = indexes
        self.prefixes = [f"{source}/{name}" for name in _name_shards(paths)]
        self.first_sample = list(itertools.accumulate(map(len, indexes), initial=0))  # of each shard, then the total
        self.is_remote = any(is_remote(path) for path in paths)
        self._files: dict[int, OpenShard] = {}
        self._fetches: dict[int, Future[OpenShard]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self.first_sample[-1]

    def for_lane(self) -> ShardSet:
        """Itself, or where shards are fetched another that fetches its own: lanes must not drop each other's."""
        return ShardSet(self.source, self.paths, self.index_folder, self.indexes) if self.is_remote else self

    def shard_of(self, index: int) -> tuple[int, int]:
        """(shard, sample within it) of a sample of all shards."""
        shard = bisect.bisect_right(self.first_sample, index) - 1
        return shard, index - self.first_sample[shard]

    @property
    def counts(self) -> Counter[str]:
        """How many members have each extension, in all shards."""
        return sum((Counter(index.counts) for index in self.indexes), Counter())

    @property
    def unread(self) -> Counter[str]:
        """How many members are not read, by kind, in all shards."""
        return sum((Counter(index.unread) for index in self.indexes), Counter())

    def name(self, index: int) -> str:
        """The key that messages and random numbers know a sample by."""
        return f"{self.prefixes[self.shard_of(index)[0]]}/{self.key(index)}"

    def key(self, index: int) -> str:
        """What a sample is called in its shard."""
        shard, sample = self.shard_of(index)
        return self.indexes[shard].key(sample)

    def read(self, index: int) -> ShardRecord:
        """The encoded files of one sample.

        Raises:
            ValueError: the shard is not the one that was indexed, or was cut off since.
            OSError: it cannot be read.
        """
        shard, sample = self.shard_of(index)
        file, contents = self._files.get(shard) or self._open(shard), self.indexes[shard]
        key = contents.key(sample)
        where = f"{self.paths[shard]}, sample {key}"
        members = contents.members(sample)
        files = {extension: read_at(file.descriptor, offset, size, where) for extension, offset, size in members}
        return ShardRecord(key=f"{self.prefixes[shard]}/{key}", files=files, header=contents.header)

    def prefetch(self, shard: int) -> None:
        """Begin to fetch a remote shard, in a thread."""
        if is_remote(self.paths[shard]) and shard not in self._fetches and shard not in self._files:
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._fetches[shard] = self._pool.submit(_fetch, self.source, self.paths[shard], self.indexes[shard])
            for old in list(self._fetches)[:-REMOTE_SHARDS_KEPT]:
                del self._fetches[old]  # not read after all: its samples were in memory

    def _open(self, shard: int) -> OpenShard:
        path, index = self.paths[shard], self.indexes[shard]
        if not is_remote(path):
            with Path(path).open("rb") as file:
                if edges_sha256(file, index.tar_bytes) != index.edges_sha256:
                    raise ValueError(
                        f"{path}: not the shard that {index_name(path, self.index_folder)} was made of; "
                        "delete that index, it is then made again"
                    )
                self._files[shard] = OpenShard(file)
            return self._files[shard]
        self.prefetch(shard)
        self._files[shard] = self._fetches.pop(shard).result()
        for old in list(self._files)[:-REMOTE_SHARDS_KEPT]:
            del self._files[old]  # the last reference: its disk space is free again
        return self._files[shard]


class OpenShard:
    """A file for reading, open until nobody refers to it; also in processes that are forked."""

    def __init__(self, file: BinaryIO):
        self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self.descriptor)


def read_at(descriptor: int, offset: int, size: int, where: str) -> bytes:
    """A member of a tar; from any thread. Not through a memory map: there a fault of the disk kills the process.

    Raises:
        ValueError: the file ends before it.
        OSError: the disk or its server says so.
    """
    try:
        content = os.pread(descriptor, size, offset)
    except OSError as error:
        error.filename = where
        raise
    if len(content) < size:
        raise ValueError(f"{where}: the shard was cut off since it was opened; copy it again")
    return content


def open_shards(source: str, pattern: str, index_folder: str | None = None) -> ShardSet:
    """Open the tars of a brace or wildcard pattern, or of URLs with braces: all members with one key are one sample.

    Args:
        pattern: as `list_shards` takes it.
        index_folder: where the index of each shard lies; None: beside it.

    Raises:
        ValueError: a shard is missing, is no tar, is damaged or cut off; there is nothing to read in any.
    """
    paths = list_shards(source, pattern)
    _allow_open_files(source, 2 * len(paths))
    path, times = Counter(map(_whole_path, paths)).most_common(1)[0]
    if times > 1:
        raise ValueError(f"source {source}: {path} is named {times} times; name each shard once")
    index_names = [index_name(path, index_folder) for path in paths]
    missing = sum(not is_remote(name) and not Path(name).exists() for name in index_names)
    pairs = zip(paths, index_names, strict=True)
    is_shown = missing > 1 and is_main()
    shown = bar(pairs, f"{source}: indexing", total=len(paths), unit="shard", disable=not is_shown)
    shards = ShardSet(source, paths, index_folder, [_open_index(source, path, name) for path, name in shown])
    if len(shards) == 0:
        unread = f" (not read: {describe_unread(shards.unread)})" if shards.unread else ""
        raise ValueError(
            f"source {source}: no samples in {pattern}{unread}; a sample is members with one key, as "
            "0001.png + 0001.txt"
        )
    return shards


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """A copy of a remote file on the local disk, which is gone at the end.

    Raises:
        ValueError: it cannot be read.
    """
    require(url, "remote", "fsspec", *(["aiohttp"] if url.startswith("http") else []))
    import fsspec

    with tempfile.NamedTemporaryFile() as file:
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            filesystem.get_file(path, file.name)
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(f"{url}: cannot be fetched: {error!r}; check the address and the network") from error
        yield Path(file.name)


def _open_index(source: str, path: str, index_name: str) -> ShardIndex:
    if not is_remote(path):
        return read_or_write_index(Path(path), Path(index_name), f"{source}/{Path(path).name}")
    advice = f"write it with: oneflow index '{path}' --output FOLDER"
    if not (is_remote(index_name) or Path(index_name).exists()):
        raise ValueError(f"{path}: a remote shard is read through its index, but {index_name} is missing; {advice}")
    try:
        with fetched(index_name) if is_remote(index_name) else nullcontext(Path(index_name)) as local:
            return decode_index(local.read_bytes(), index_name)
    except ValueError as error:
        raise ValueError(f"{error}; that of a remote shard: {advice}, and set `index` in the mixture") from error


def _fetch(source: str, url: str, index: ShardIndex) -> OpenShard:
    with fetched(url) as path, path.open("rb") as file:
        if file_sha256(file) != index.tar_sha256:
            raise ValueError(f"{source}: {url} is not the shard that its index was made of; index it again")
        return OpenShard(file)


def _allow_open_files(source: str, needed: int) -> None:
    """A shard that was read and the map of its index stay open, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed + 256 > soft and (hard == resource.RLIM_INFINITY or needed + 256 <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    elif needed + 256 > soft:
        raise ValueError(
            f"source {source}: its shards need {needed} open files, the limit is {hard}; use larger shards"
        )


def list_shards(source: str, pattern: str) -> list[str]:
    """The shards of a pattern, in order: of its braces first, then of its wildcards; an address has braces alone.

    A path, or a folder at its start, that exists as it is written is no pattern: `set [v2]/*.tar` may lie in a folder
    of that name. Wildcards leave out what this package writes itself.

    Raises:
        ValueError: a part of the pattern has none, or is a folder.
    """
    folder, rest = ("", pattern) if is_remote(pattern) else _split(os.path.expanduser(pattern))  # noqa: PTH111 - no Path
    try:
        names = [f"{folder}{name}" for name in braceexpand.braceexpand(rest)]
    except ValueError as error:
        raise ValueError(f"source {source}: {pattern}: its braces are not balanced; mend the pattern") from error
    return names if is_remote(pattern) else [path for name in names for path in _match(source, name)]


def is_remote(path: str) -> bool:
    """Whether a shard has to be fetched."""
    return "://" in path


def index_name(path: str, index_folder: str | None) -> str:
    """Where the index of a shard lies: beside it, or in a folder of indexes, which shards of one name may share."""
    if index_folder is None:
        return f"{path}.index"
    whole = hashlib.sha256(os.fsencode(_whole_path(path))).hexdigest()
    folder = os.path.expanduser(index_folder)  # noqa: PTH111 - it may be an address
    return f"{folder}/{path.rpartition('/')[2]}.{whole[:12]}.index"


def _split(pattern: str) -> tuple[str, str]:
    """The longest start, up to a slash or the end, that exists as it is written; and what is a pattern behind it."""
    starts = [pattern, *(pattern[: slash.end()] for slash in re.finditer("/", pattern))]
    folder = max(filter(os.path.exists, starts), key=len, default="")  # of a path that is too long, too: Path raises
    return folder, pattern[len(folder) :]


def _match(source: str, pattern: str) -> list[str]:
    """The files of a wildcard pattern."""
    folder, rest = _split(pattern)
    matches = sorted(glob.glob(rest, root_dir=folder))  # noqa: PTH207 - Path.glob takes hidden files, too
    found = [f"{folder}{match}" for match in matches if not OWN_FILES.fullmatch(Path(match).name)]
    if folder and not rest:
        found = [folder]
    if not found:
        raise ValueError(f"source {source}: no such shard {pattern}; write the shards first or mend the pattern")
    for path in filter(os.path.isdir, found):
        raise ValueError(f"source {source}: {path} is a folder; name its shards, as {path.rstrip('/')}/*.tar")
    return found


def _whole_path(path: str) -> str:
    return path if is_remote(path) else str(Path(path).absolute())


def _name_shards(paths: list[str]) -> list[str]:
    """The stem of each; where some share one, after as many of their folders as tell them apart."""
    alike: dict[str, list[Path]] = {}
    for path in paths:
        whole = Path(_whole_path(path))
        alike.setdefault(whole.stem, []).append(whole)
    names: dict[Path, str] = {}
    for stem, group in alike.items():
        is_stem_enough = len({path.parent for path in group}) == len(group)
        parts = [(path.parent / stem if is_stem_enough else path).parts for path in group]
        lengths = range(1, 1 + max(map(len, parts)))
        length = next(n for n in lengths if len({part[-n:] for part in parts}) == len(group))
        names |= {path: "/".join(part[-length:]) for path, part in zip(group, parts, strict=True)}
    return [names[Path(_whole_path(path))] for path in paths]
