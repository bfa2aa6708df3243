"""What lies where in a WebDataset tar, and what of it is damaged. No member is ever extracted by its name."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
DIMENSIONS = {**dict.fromkeys(IMAGE_EXTENSIONS, 2), "wav": 1, "apng": 3}  # of the pieces in files of these kinds
TEXT_EXTENSIONS = ("txt", "json")  # with nothing before them: 0.png is an image of a sample, but 0.txt no text
EXTENSIONS = (*TEXT_EXTENSIONS, "npy", *DIMENSIONS)  # what is read; nothing else is, and nothing is unpickled
PICKLES = ("pkl", "pickle", "pt", "pth", "joblib")  # running them runs code: never read, and named where all is checked
DOTTED = "*."  # how the kind of an unread text or .json begins whose extension has further dots
KINDS_SHOWN = 8  # in a line
HEADER_KEY = "ONEFLOW.header"  # of the pax header that tells how a shard was made


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample: all members with one key are one sample."""

    key: str
    extension: str  # all after the first dot, in lower case: "txt", "0.jpg"
    offset: int  # of its content in the tar
    size: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a tar that cannot be used."""

    name: str  # the sample's key or the member's name; "" where none is readable
    reason: str
    offset: int = 0  # of the damage in the tar, where no name is readable


@dataclass(slots=True)
class TarContents:
    """All that a scan finds."""

    members: list[Member] = field(default_factory=list)  # in tar order
    pickles: list[Member] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # files of samples by kind: "gif", "*.txt", "" without any
    faults: list[Fault] = field(default_factory=list)  # in tar order
    header: dict[str, Any] = field(default_factory=dict)  # what the writer of the shard says of it


def scan_tar(file: BinaryIO, num_bytes: int) -> TarContents:
    """List the members of a tar of `num_bytes` bytes; after damage go on at the next readable header."""
    found = TarContents()
    seen = set[tuple[str, str]]()
    end = start = 0  # of what has been understood, and where to look for the next header
    while start < num_bytes:
        file.seek(start)
        try:
            tar = tarfile.TarFile(fileobj=file, ignore_zeros=True, encoding="utf-8")
            for info in tar:
                if end != info.offset and not _is_blank(file, end, info.offset):
                    end = _skip_global_headers(file, end)
                if end != info.offset and not _is_blank(file, end, info.offset):
                    found.faults.append(Fault("", f"damaged at byte {end}", end))
                end = tar.offset  # of the header that follows
                if end > num_bytes:
                    found.faults.append(
                        Fault(_printable(info.name), f"the tar is cut off inside it, at byte {num_bytes}")
                    )
                    return found
                _add(found, seen, info)
            _add_header(found, tar.pax_headers)
            break
        except tarfile.TarError:  # a long name or its like without the header that must follow it
            start = max(start, end) + tarfile.BLOCKSIZE
    end = _skip_global_headers(file, end)  # of a shard in which no sample was good
    if end + tarfile.BLOCKSIZE > num_bytes or not _is_blank(file, end, num_bytes):
        reason = f"cut off or damaged at byte {end}" if end else "not a readable tar"
        found.faults.append(Fault("", reason, end))
    return found


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: a folder belongs to the key, all after the first dot is the extension."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def describe_unread(unread: Mapping[str, int]) -> str:
    """What of some tars is not read, as `8 .gif, 3 .caption`, the most frequent first."""
    ordered = sorted(unread.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{count} {f'.{kind}' if kind else 'without an extension'}" for kind, count in ordered[:KINDS_SHOWN]]
    rest = [count for _, count in ordered[KINDS_SHOWN:]]
    return ", ".join([*shown, *([f"{sum(rest)} of {len(rest)} more kinds"] if rest else [])])


def _add(found: TarContents, seen: set[tuple[str, str]], info: tarfile.TarInfo) -> None:
    key, extension = split_name(info.name)
    member = Member(key, extension, info.offset_data, info.size)
    stem, _, kind = extension.rpartition(".")
    if not key.rpartition("/")[2] or not (info.isreg() or info.issym() or info.islnk()):
        return
    if kind not in (*EXTENSIONS, *PICKLES) or (stem and kind in TEXT_EXTENSIONS):
        found.unread[f"{DOTTED}{kind}" if kind in EXTENSIONS else kind] += 1
        return
    name = _printable(info.name)
    if name != info.name:
        found.faults.append(Fault(name, "its name is not UTF-8"))
    elif not info.isreg():
        found.faults.append(Fault(name, "a link, not a file"))
    elif info.name.startswith("/") or ".." in info.name.split("/"):
        found.faults.append(Fault(name, "its name leaves the archive"))
    elif info.issparse():
        found.faults.append(Fault(name, "a sparse file, not stored as it is"))
    elif (member.key, member.extension) in seen:
        found.faults.append(Fault(name, "the tar holds it twice"))
    elif kind in PICKLES:
        seen.add((member.key, member.extension))
        found.pickles.append(member)
        found.unread[kind] += 1
    else:
        seen.add((member.key, member.extension))
        found.members.append(member)


def _printable(name: str) -> str:
    """A name with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _add_header(found: TarContents, pax_headers: Mapping[str, str]) -> None:
    try:
        found.header |= json.loads(pax_headers.get(HEADER_KEY, "{}"))
    except (ValueError, TypeError) as error:
        found.faults.append(Fault("", f"its header {HEADER_KEY} is broken ({error})"))


def _skip_global_headers(file: BinaryIO, start: int) -> int:
    """The first byte at or after `start` that is not of a pax header for all members, which tarfile does not list."""
    while True:
        file.seek(start)
        try:
            info = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            return start
        if info.type != tarfile.XGLTYPE:
            return start
        start += tarfile.BLOCKSIZE * (1 + -(-info.size // tarfile.BLOCKSIZE))


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    """Whether all bytes from `start` to `end` are zero."""
    file.seek(start)
    return not file.read(max(0, end - start)).strip(b"\0")
