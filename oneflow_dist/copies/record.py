"""What belongs to a copy that lies on several nodes, and whether this node's part of it is still as it was written."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.progress import NAME

RECORD = "copy.json"  # of a copy, on every node that has a part of it: the last file that is written
CHUNK = 1 << 24  # bytes that are read, sent or written at once


@dataclass(frozen=True, slots=True)
class Measure:
    """Of a file: one that was cut off or changed has another."""

    length: int  # bytes
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One copy; the same on all its nodes."""

    step: int
    save: str  # random: files of two saves of one step do not go together
    after: int  # the step of the newest checkpoint on the disk then; 0: none
    files: dict[str, Measure]  # of all nodes; each lies on two of them, the small ones on all

    def to_text(self) -> str:
        """As it lies in memory; what two nodes have belongs together if these texts are equal."""
        return json.dumps(dataclasses.asdict(self))


def read_record(text: str) -> Record:
    """The inverse of `to_text`.

    Raises:
        ValueError, LookupError, TypeError: it is damaged.
    """
    table = json.loads(text)
    files = {name: Measure(**measure) for name, measure in table.pop("files").items()}
    return Record(**table, files=files)


def find_records(folder: Path) -> dict[str, Record]:
    """The records of this node's copies by their texts; a copy without a whole record is none."""
    found: dict[str, Record] = {}
    for path in folder.glob(f"step-*/{RECORD}"):
        if re.fullmatch(NAME, path.parent.name):
            text = path.read_text(errors="replace")
            with suppress(ValueError, LookupError, TypeError, AttributeError):
                found[text] = read_record(text)
    return found


def intact_files(copy: Path, record: Record, share: slice) -> list[str]:
    """Those of this share of the files that lie here and are as they were written."""
    here = sorted(name for name in record.files if (copy / name).is_file())
    return [name for name in here[share] if measure(copy / name) == record.files[name]]


def measure(path: Path) -> Measure:
    """Reads all of a file, some GB in a second; other threads run meanwhile."""
    length = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            length, crc = length + len(chunk), zlib.crc32(chunk, crc)
    return Measure(length, crc)


def measure_all(folder: Path, names: Iterable[str]) -> dict[str, Measure]:
    """Of the files that are there."""
    return {name: measure(folder / name) for name in names if (folder / name).is_file()}
