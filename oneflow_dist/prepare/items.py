"""What a user's folder holds, as its owner has it: items, and the bytes of their pictures where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from oneflow_dist.prepare.packages import need


class Row(NamedTuple):
    """A place in a parquet or an Arrow file."""

    group: int  # row group of a parquet file; an Arrow file has one, 0
    row: int  # within the group
    column: str  # of bytes, or of a struct with a field `bytes`


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes that are read when they are needed; small and picklable, so that workers can be handed it."""

    name: str  # for messages and extensions: "birds/owl.png"
    path: Path  # the file that holds it
    offset: int = 0
    length: int | None = None  # None: all of the file
    row: Row | None = None  # or a place in a table of pictures
    content: bytes | None = None  # or the bytes themselves: a page may spell a picture out

    def read(self) -> bytes:
        """All bytes.

        Raises:
            ValueError: the file ends before them, or the row holds none.
            OSError: the file cannot be read.
        """
        if self.content is not None:
            return self.content
        if self.row is not None:
            return self._read_row(self.row)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(-1 if self.length is None else self.length)
        if self.length is not None and len(content) < self.length:
            raise ValueError(f"{self.name}: {self.path} ends after {len(content)} of its {self.length} bytes")
        return content

    def _read_row(self, place: Row) -> bytes:
        value = read_column(self.path, place.group, place.column)[place.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            named = value.get("path") if isinstance(value, dict) else None
            hint = f", only the path {named!r}; embed the pictures when you write it" if named else ""
            raise ValueError(f"{self.name}: column {place.column!r} of {self.path} holds no picture there{hint}")
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One sample as its owner has it, before anything is decoded."""

    name: str  # where it stands, unique within a source: "birds/owl.png", "captions.csv:12", "page.html"
    parts: tuple[str | Blob, ...] = ()  # a pair: its picture; a document: texts and pictures in reading order
    captions: tuple[str, ...] = ()  # of a pair: all that were found, in order (COCO has five)
    turns: tuple[tuple[str, tuple[str | Blob, ...]], ...] = ()  # of a conversation: (user, assistant or system; parts)
    fields: Mapping[str, Any] = field(default_factory=dict)  # whatever else was said of it, as JSON has it
    problem: str | None = None  # why it cannot be used, where the layout itself says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All that a folder holds."""

    kind: str  # what it was taken for, in words: "pictures with .txt beside them"
    items: Sequence[Item]  # sorted, the same on every run and machine
    unread: Mapping[str, int]  # what nothing reads: files by extension, and parts of files by what they are


@lru_cache(maxsize=2)
def read_column(path: Path, group: int, column: str) -> Any:
    """One column of a parquet row group, or of all of an Arrow file, as a `pyarrow.ChunkedArray`.

    The last are kept: pictures are read one after another, and a column of parquet is decoded as a whole.
    """
    if path.suffix.lower() == ".parquet":
        with need("pyarrow.parquet").ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column]).column(column)
    return open_arrow(path).column(column)


def open_arrow(path: Path) -> Any:
    """A `pyarrow.Table` of an Arrow file, a stream or with a footer; its bytes stay on the disk until they are used."""
    arrow, ipc = need("pyarrow"), need("pyarrow.ipc")
    mapped = arrow.memory_map(str(path))
    has_footer = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    return ipc.open_file(mapped).read_all() if has_footer else ipc.open_stream(mapped).read_all()
