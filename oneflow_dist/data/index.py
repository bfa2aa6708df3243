"""Where each file of a shard lies, in an index beside it: a tar is scanned once, then read at random."""

# Shapes: n samples and m members of one tar, n1 = n + 1.

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from oneflow_dist.data.tar import TarContents, scan_tar
from oneflow_dist.files import claim

FORMAT = "oneflow index 3"
EDGE_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The samples of one tar and where their files lie in it; the arrays are views of the index file."""

    tar_bytes: int
    tar_sha256: str
    edges_sha256: str  # of the tar's first and last 64 KiB: cheap enough to compare each time it is opened
    header: dict[str, Any]  # what the writer of the shard says of it
    extensions: tuple[str, ...]
    counts: dict[str, int]  # how many members have each extension
    unread: dict[str, int]  # members of other kinds, by kind, see `TarContents`
    first_member: Int64[np.ndarray, "n1"]  # of each sample, then the number of all members
    key_end: Int64[np.ndarray, "n1"]  # where the key of each sample ends in `keys`; starts with 0
    extension: Int64[np.ndarray, "m"]  # of each member, an index into `extensions`
    offset: Int64[np.ndarray, "m"]  # of its content in the tar
    size: Int64[np.ndarray, "m"]
    keys: memoryview

    def __len__(self) -> int:
        return len(self.key_end) - 1

    def key(self, sample: int) -> str:
        """What the names of a sample's members begin with."""
        start, end = self.key_end[sample : sample + 2].tolist()
        return bytes(self.keys[start:end]).decode()

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of the files of one sample."""
        first, last = self.first_member[sample : sample + 2].tolist()
        columns = [column[first:last].tolist() for column in (self.extension, self.offset, self.size)]
        return [(self.extensions[extension], offset, size) for extension, offset, size in zip(*columns, strict=True)]


def index_tar(path: Path, name: str) -> bytes:
    """The content of the index file of a tar, which is read once from end to end.

    Raises:
        ValueError: the tar is damaged, cut off, or holds a name that leaves it.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        contents = scan_tar(file, num_bytes)
        if contents.faults:
            fault = contents.faults[0]
            subject = f"{name}, member {fault.name}" if fault.name else name
            raise ValueError(f"{subject}: {fault.reason}; write this shard again")
        return encode_index(contents, num_bytes, file_sha256(file), edges_sha256(file, num_bytes))


def encode_index(contents: TarContents, num_bytes: int, sha256: str, edges: str) -> bytes:
    """The content of an index file: a line of JSON, then int64 numbers, then the keys."""
    samples: dict[str, list[Any]] = {}
    for member in contents.members:
        samples.setdefault(member.key, []).append(member)
    members = [member for of_sample in samples.values() for member in of_sample]
    counts = dict(sorted(Counter(member.extension for member in members).items()))
    number_of = {extension: number for number, extension in enumerate(counts)}
    keys = [key.encode() for key in samples]
    body = b"".join(
        np.array(numbers, dtype=np.int64).tobytes()
        for numbers in (
            np.cumsum([0, *map(len, samples.values())]),
            np.cumsum([0, *map(len, keys)]),
            [number_of[member.extension] for member in members],
            [member.offset for member in members],
            [member.size for member in members],
        )
    ) + b"".join(keys)
    head = {
        "format": FORMAT,
        "num_samples": len(samples),
        "num_members": len(members),
        "tar_bytes": num_bytes,
        "tar_sha256": sha256,
        "edges_sha256": edges,
        "members": counts,
        "unread": dict(sorted(contents.unread.items())),
        "header": contents.header,
    }
    line = json.dumps(head | {"sha256": _checksum(head, body)}).encode()
    return line + b" " * (7 - len(line) % 8) + b"\n" + body


def decode_index(content: bytes | memoryview, name: str) -> ShardIndex:
    """Read an index file's content.

    Raises:
        ValueError: it is damaged or of another format.
    """
    line = re.search(rb"\n", content)  # without a copy
    end = line.end() if line else 0
    try:
        head, body = json.loads(bytes(content[:end])), memoryview(content)[end:]
        if head.pop("sha256") != _checksum(head, body) or head["format"] != FORMAT:
            raise ValueError("its checksum or format differs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: damaged index ({error}); delete it, it is then made again") from error
    num_samples, num_members = head["num_samples"], head["num_members"]
    lengths = (num_samples + 1, num_samples + 1, num_members, num_members, num_members)
    numbers = np.frombuffer(body, dtype=np.int64, count=sum(lengths))
    first_member, key_end, extension, offset, size = np.split(numbers, np.cumsum(lengths)[:-1])
    return ShardIndex(
        tar_bytes=head["tar_bytes"],
        tar_sha256=head["tar_sha256"],
        edges_sha256=head["edges_sha256"],
        header=head["header"],
        extensions=tuple(head["members"]),
        counts=head["members"],
        unread=head["unread"],
        first_member=first_member,
        key_end=key_end,
        extension=extension,
        offset=offset,
        size=size,
        keys=body[8 * sum(lengths) :],
    )


def read_or_write_index(path: Path, index_path: Path, name: str) -> ShardIndex:
    """The index of a local tar; the tar is scanned, and the index written, where there is none that is up to date.

    In a folder that cannot be written to, the index lives in memory only.

    Raises:
        ValueError: the index is damaged, or the tar is, see `index_tar`.
        OSError: one of them cannot be read.
    """

    def is_current(index_path: Path) -> bool:
        return _is_index_of(path, index_path)

    if not is_current(index_path):
        try:
            index_path.parent.mkdir(parents=True, exist_ok=True)
            claimed = claim(index_path, wait=True, is_done=is_current)
        except OSError:  # a read-only folder
            return decode_index(index_tar(path, name), str(index_path))
        if claimed is not None:
            with claimed:
                claimed.file.write(index_tar(path, name))
                claimed.commit()
    # Mapped, not read: it has a hundred bytes for each sample, and the ranks of a machine share the pages.
    return decode_index(np.memmap(index_path, mode="r").data, str(index_path))


def file_sha256(file: BinaryIO) -> str:
    """The checksum of all bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def edges_sha256(file: BinaryIO, num_bytes: int) -> str:
    """The checksum of the first and the last 64 KiB of a file of `num_bytes`."""
    file.seek(0)
    head = file.read(EDGE_BYTES)
    file.seek(max(0, num_bytes - EDGE_BYTES))
    return hashlib.sha256(head + file.read(EDGE_BYTES)).hexdigest()


def _checksum(head: dict[str, Any], body: bytes | memoryview) -> str:
    digest = hashlib.sha256(json.dumps(head).encode())
    digest.update(body)
    return digest.hexdigest()


def _is_index_of(path: Path, index_path: Path) -> bool:
    """Whether it is an index of this format, of a tar of this size, and was written after the tar."""
    tar = path.stat()
    try:
        with index_path.open("rb") as file:
            head, written = json.loads(file.readline()), os.fstat(file.fileno()).st_mtime_ns
            return bool(head["format"] == FORMAT and head["tar_bytes"] == tar.st_size and tar.st_mtime_ns <= written)
    except (OSError, ValueError, KeyError, TypeError):
        return False
