"""The samples of many tar shards as one sequence: local ones read at random, remote ones fetched whole."""

from __future__ import annotations

import bisect
import glob
import itertools
import mmap
import resource
import tempfile
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import braceexpand
from tqdm import tqdm

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.index import ShardIndex, decode_index, edges_sha256, file_sha256, open_index
from oneflow_dist.runtime import is_main

REMOTE_SHARDS_KEPT = 2  # per lane and source: the one in use and the next, on the local disk


class ShardSet:
    """The samples of many shards, in shard order. Files are opened when first read, in whichever process reads."""

    def __init__(self, source: str, paths: list[str], index_folder: str | None, indexes: list[ShardIndex]):
        self.source = source
        self.paths = paths
        self.index_folder = index_folder
        self.indexes = indexes
        self.prefixes = [f"{source}/{Path(path).stem}" for path in paths]
        self.first_sample = list(itertools.accumulate(map(len, indexes), initial=0))  # of each shard, then the total
        self.is_remote = any(is_remote(path) for path in paths)
        self._maps: dict[int, mmap.mmap] = {}
        self._fetches: dict[int, Future[mmap.mmap]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_all, (self.source, self.paths, self.index_folder)

    def __len__(self) -> int:
        return self.first_sample[-1]

    def for_lane(self) -> ShardSet:
        """Itself, or where shards are fetched another that fetches its own: lanes must not drop each other's."""
        return ShardSet(self.source, self.paths, self.index_folder, self.indexes) if self.is_remote else self

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, sample within it)."""
        shard = bisect.bisect_right(self.first_sample, index) - 1
        return shard, index - self.first_sample[shard]

    def name(self, index: int) -> str:
        """The key that messages and random numbers know a sample by."""
        shard, sample = self.locate(index)
        return f"{self.prefixes[shard]}/{self.indexes[shard].key(sample)}"

    def read(self, index: int) -> ShardRecord:
        """The encoded files of one sample.

        Raises:
            ValueError: the shard is not the one that was indexed.
        """
        shard, sample = self.locate(index)
        data, contents = self._maps.get(shard) or self._open(shard), self.indexes[shard]
        files = {extension: data[offset : offset + size] for extension, offset, size in contents.members(sample)}
        return ShardRecord(key=self.name(index), files=files, header=contents.header)

    def prefetch(self, shard: int) -> None:
        """Begin to fetch a remote shard, in a thread."""
        if is_remote(self.paths[shard]) and shard not in self._fetches and shard not in self._maps:
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._fetches[shard] = self._pool.submit(_fetch, self.source, self.paths[shard], self.indexes[shard])
            for old in list(self._fetches)[:-REMOTE_SHARDS_KEPT]:
                del self._fetches[old]  # not read after all: its samples were in memory

    def _open(self, shard: int) -> mmap.mmap:
        path, index = self.paths[shard], self.indexes[shard]
        if not is_remote(path):
            with Path(path).open("rb") as file:
                if edges_sha256(file, index.tar_bytes) != index.edges_sha256:
                    raise ValueError(
                        f"{path}: not the shard that {index_name(path, self.index_folder)} was made of; "
                        "delete that index, it is then made again"
                    )
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[shard]
        self.prefetch(shard)
        self._maps[shard] = self._fetches.pop(shard).result()
        for old in list(self._maps)[:-REMOTE_SHARDS_KEPT]:
            del self._maps[old]  # the last reference: its disk space is free again
        return self._maps[shard]


def open_shards(source: str, pattern: str, index_folder: str | None = None) -> ShardSet:
    """Open the tars of a brace or wildcard pattern, or of URLs with braces: all members with one key are one sample.

    Args:
        index_folder: where the index of each shard lies; None: beside it.

    Raises:
        ValueError: a shard is missing, is no tar, is damaged or cut off; there is nothing to read in any.
    """
    shards = _open_all(source, list_shards(source, pattern), index_folder)
    if len(shards) == 0:
        raise ValueError(
            f"source {source}: no samples in {pattern}; a sample is members with one key, as 0001.png + 0001.txt"
        )
    return shards


def fetch_whole(url: str, folder: str | None = None) -> tempfile._TemporaryFileWrapper[bytes]:
    """A remote file in a temporary one, which is gone when it is closed.

    Raises:
        ValueError: it cannot be read.
    """
    import fsspec

    file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.get_file(path, file.name)
    except (OSError, ImportError, ValueError) as error:
        file.close()
        raise ValueError(f"{url}: cannot be fetched: {error!r}; check the address and the network") from error
    return file


def _open_all(source: str, paths: list[str], index_folder: str | None) -> ShardSet:
    _allow_open_files(source, 2 * len(paths))
    index_names = [index_name(path, index_folder) for path in paths]
    name, times = Counter(index_names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"source {source}: {times} shards share the index {name}; name each once")
    missing = sum(not is_remote(name) and not Path(name).exists() for name in index_names)
    pairs = zip(paths, index_names, strict=True)
    bar = tqdm(pairs, f"{source}: indexing", len(paths), unit="shard", disable=missing < 2 or not is_main())
    return ShardSet(source, paths, index_folder, [_open_one(source, path, name) for path, name in bar])


def _open_one(source: str, path: str, index_name: str) -> ShardIndex:
    if not is_remote(path):
        return open_index(Path(path), Path(index_name), f"{source}/{Path(path).name}")
    advice = f"write it with: python tools/index_shards.py '{path}' --output FOLDER"
    if not is_remote(index_name):
        if not Path(index_name).exists():
            raise ValueError(f"{path}: a remote shard is read through its index, but {index_name} is missing; {advice}")
        return decode_index(memoryview(Path(index_name).read_bytes()), index_name)
    try:
        with fetch_whole(index_name) as file:
            return decode_index(memoryview(Path(file.name).read_bytes()), index_name)
    except ValueError as error:
        raise ValueError(f"{error}; if there is none yet, {advice}, and set `index` in the mixture") from error


def _fetch(source: str, url: str, index: ShardIndex) -> mmap.mmap:
    with fetch_whole(url) as file:
        with Path(file.name).open("rb") as content:
            if file_sha256(content) != index.tar_sha256:
                raise ValueError(f"{source}: {url} is not the shard that its index was made of; index it again")
        with Path(file.name).open("rb") as content:
            return mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)


def _allow_open_files(source: str, needed: int) -> None:
    """A map keeps its file open, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed + 256 > soft and (hard == resource.RLIM_INFINITY or needed + 256 <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    elif needed + 256 > soft:
        raise ValueError(
            f"source {source}: its shards need {needed} open files, the limit is {hard}; use larger shards"
        )


def list_shards(source: str, pattern: str) -> list[str]:
    """The shards of a brace or wildcard pattern, in order; an address stands for itself.

    Raises:
        ValueError: a part of the pattern has none.
    """
    paths = []
    for part in braceexpand.braceexpand(pattern):
        found = [part] if is_remote(part) else sorted(glob.glob(part))  # noqa: PTH207 - Path.glob takes no absolute one
        if not found:
            raise ValueError(f"source {source}: no such shard {part}; write the shards first or mend the pattern")
        paths += found
    return paths


def is_remote(path: str) -> bool:
    """Whether a shard has to be fetched."""
    return "://" in path


def index_name(path: str, index_folder: str | None) -> str:
    """Where the index of a shard lies: beside it, or in a folder of indexes."""
    return f"{path}.index" if index_folder is None else f"{index_folder}/{path.rpartition('/')[2]}.index"
