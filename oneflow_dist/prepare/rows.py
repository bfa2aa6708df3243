"""Rows with the path of a picture and captions, from whatever table they are, become items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oneflow_dist.prepare.captions import join_captions, list_texts, rank_of
from oneflow_dist.prepare.folders import Folder, is_picture, is_remote, parent_of, split_of
from oneflow_dist.prepare.items import Item
from oneflow_dist.prepare.turns import CONVERSATIONS

PATHS = ["file_name", "filename", "image_path", "image_file", "image_name", "image_filename", "img_path", "filepath"]
PATHS += ["file_path", "image", "img", "picture", "photo", "file", "path", "images"]
MAX_PATH = 1024  # characters
SAMPLE = 100  # rows that are looked at to tell columns apart


class Entry(NamedTuple):
    """One row of a table."""

    name: str  # "captions.csv:12"
    values: Mapping[str, Any]
    problem: str | None = None  # why it has no values


class Columns(NamedTuple):
    """Which columns of a table are read."""

    path: str
    captions: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Found:
    """All rows of one picture."""

    name: str
    file: str | None  # None: it is not there
    problem: str | None
    captions: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def choose_columns(rows: Sequence[Entry]) -> Columns | None:
    """The columns of paths and of captions, by their names, and else by what stands in them; None without both."""
    rows = [row for row in rows[:SAMPLE] if row.problem is None]
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if CONVERSATIONS in names:
        return None
    column = {name: [row.values.get(name) for row in rows] for name in names}
    paths = [name for name in names if _share(column[name], _is_path) >= 0.5]
    if not paths:
        return None
    path = min(paths, key=lambda name: (_rank_of_path(name), names.index(name)))
    others = [name for name in names if name not in paths]
    captions = [name for name in others if rank_of(name) is not None and _share(column[name], _is_text) > 0]
    if not captions:
        texts = [name for name in others if _share(column[name], _is_text) >= 0.5]
        captions = sorted(texts, key=lambda name: -_length(column[name]))[:1]
    return Columns(path, tuple(captions)) if captions else None


def join_rows(folder: Folder, rows: Iterable[Entry], columns: Columns, table: str, *bases: str) -> list[Item]:
    """Items of a table, in the order of its rows; all rows of one picture are one item.

    Args:
        table: the file, from whose folder paths are written.
        bases: further folders they may be written from.
    """
    by_reference: dict[str, _Found] = {}
    by_file: dict[str, _Found] = {}
    for row in rows:
        reference = row.values.get(columns.path) or f"\n{row.name}"
        said = by_reference.get(str(reference))
        if said is None:
            said = _find(folder, row, columns, table, bases)
            said = said if said.file is None else by_file.setdefault(said.file, said)
            by_reference[str(reference)] = said
        said.captions += [text for name in columns.captions for text in list_texts(row.values.get(name))]
    return [_item(folder, said) for said in dict.fromkeys(by_reference.values())]


def files_of(items: Iterable[Item]) -> set[str]:
    """The pictures of items, by their files."""
    return {part.name for item in items for part in item.parts if not isinstance(part, str)}


def _find(folder: Folder, row: Entry, columns: Columns, table: str, bases: Sequence[str]) -> _Found:
    """The picture of a row, and what it says but captions."""
    if row.problem is not None:
        return _Found(row.name, None, row.problem)
    reference = row.values.get(columns.path)
    fields = {name: value for name, value in row.values.items() if name not in (columns.path, *columns.captions)}
    if not isinstance(reference, str) or not reference.strip():
        return _Found(
            row.name, None, f"no path of a picture in its column; write one ({columns.path!r})", fields=fields
        )
    try:
        file = folder.find(reference, parent_of(table), *bases)
    except ValueError as error:
        return _Found(row.name, None, str(error), fields=fields)
    return _Found(row.name, file, None, fields=(split_of(file) or split_of(table)) | fields)


def _item(folder: Folder, said: _Found) -> Item:
    parts = (folder.blob(said.file),) if said.file is not None else ()
    captions = join_captions(said.captions)
    return Item(name=said.name, parts=parts, captions=captions, fields=said.fields, problem=said.problem)


def _share(values: Sequence[Any], is_so: Any) -> float:
    """Of the values that are there."""
    there = [value for value in values if value is not None and value not in ("", [])]
    return sum(map(is_so, there)) / len(there) if there else 0.0


def _is_path(value: Any) -> bool:
    is_short = isinstance(value, str) and len(value) < MAX_PATH and "\n" not in value
    return is_short and is_picture(value.split("?")[0].strip())


def _is_text(value: Any) -> bool:
    return any(any(map(str.isalpha, text)) and not is_remote(text) for text in list_texts(value))


def _length(values: Sequence[Any]) -> float:
    lengths = [len(text) for value in values for text in list_texts(value)]
    return sum(lengths) / len(lengths)


def _rank_of_path(name: str) -> int:
    plain = name.strip().casefold().replace(" ", "_").replace("-", "_")
    return PATHS.index(plain) if plain in PATHS else len(PATHS)
