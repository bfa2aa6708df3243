"""Tables as text, .csv, .tsv and .jsonl, that name pictures and say their captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from oneflow_dist.prepare.captions import rank_of
from oneflow_dist.prepare.folders import Folder, extension_of, is_picture
from oneflow_dist.prepare.items import Source
from oneflow_dist.prepare.rows import SAMPLE, Columns, Entry, choose_columns, files_of, join_rows
from oneflow_dist.prepare.text_files import MAX_TABLE_BYTES, decode_text, read_json, read_text

TABLES = ("csv", "tsv", "jsonl")
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's imagefolder
DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}
LOOK_BYTES = 1 << 18  # at the start of a file, to tell what it is


def metadata_of(folder: Folder) -> list[str]:
    """The tables of an imagefolder."""
    return [file for file in folder.files if file.rpartition("/")[2].lower() in METADATA]


def tables_of(folder: Folder) -> list[str]:
    """Other tables that have a column of pictures and one of captions."""
    others = [file for file in folder.with_extension(*TABLES) if file.rpartition("/")[2].lower() not in METADATA]
    return [file for file in others if folder.problem(file) is None and _look(folder, file) is not None]


def read_tables(folder: Folder, files: Sequence[str], kind: str) -> Source:
    """The pictures that tables name.

    Raises:
        ValueError: there is no table, one is broken as a whole, or lacks a column.
    """
    if not files:
        wanted = "a column of pictures and one of captions"
        raise ValueError(f"{folder.root}: no table with {wanted}; write captions.csv with both")
    items = []
    for file in files:
        rows = list(_rows(file, read_text(folder.root / file, MAX_TABLE_BYTES)))
        columns = choose_columns(rows)
        if columns is None:
            names = ", ".join(dict.fromkeys(name for row in rows[:SAMPLE] for name in row.values)) or "no columns"
            advice = "call a column of pictures file_name, and one of captions caption"
            raise ValueError(f"{file} has {names}, but not both pictures and captions; {advice}")
        items += join_rows(folder, rows, columns, file)
    return Source(kind=kind, items=items, unread=folder.unread(files_of(items) | set(files)))


def _look(folder: Folder, file: str) -> Columns | None:
    """The columns of a table by its first rows."""
    with (folder.root / file).open("rb") as opened:
        start = opened.read(LOOK_BYTES)
    text = decode_text(start if len(start) < LOOK_BYTES else start[: start.rfind(b"\n")])
    try:
        return choose_columns(list(islice(_rows(file, text, is_cut=len(start) == LOOK_BYTES), SAMPLE)))
    except ValueError:  # what is no table is told from one by this
        return None


def _rows(file: str, text: str, is_cut: bool = False) -> Iterator[Entry]:
    if extension_of(file) == "jsonl":
        yield from _json_rows(file, text)
    else:
        yield from _csv_rows(file, text, is_cut)


def _json_rows(file: str, text: str) -> Iterator[Entry]:
    for number, line in enumerate(io.StringIO(text), start=1):
        name = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            value = read_json(line, "the line")
        except ValueError as error:
            yield Entry(name, {}, str(error))
            continue
        yield (
            Entry(name, value)
            if isinstance(value, dict)
            else Entry(name, {}, "the line holds no object; write it again")
        )


def _csv_rows(file: str, text: str, is_cut: bool) -> Iterator[Entry]:
    """The rows below the first, which names the columns unless it is one with a picture itself."""
    records = _records(file, text, is_cut)
    header = next(records, None)
    if header is None:
        return
    _, first = header
    names = _tell_apart([name.strip() for name in first])
    has_header = not any(map(is_picture, names)) or any(rank_of(name) is not None for name in names)
    if not has_header:
        names = [f"column {number}" for number, _ in enumerate(first, start=1)]
        records = iter([header, *records])
    for line, values in records:
        if len(values) == len(names):
            yield Entry(f"{file}:{line}", dict(zip(names, values, strict=True)))
        else:
            advice = "put quotes around text with a delimiter in it"
            reason = f"another number of fields than the first row; {advice} ({len(values)}, not {len(names)})"
            yield Entry(f"{file}:{line}", {}, reason)


def _tell_apart(names: list[str]) -> list[str]:
    """Columns of one name are numbered: caption, caption_2."""
    counts = [names[: at + 1].count(name) for at, name in enumerate(names)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(names, counts, strict=True)]


def _records(file: str, text: str, is_cut: bool) -> Iterator[tuple[int, list[str]]]:
    """The line each record begins in, and its fields; of quotes that do not close, where tabs divide, as they stand."""
    delimiter = _choose_delimiter(text, DELIMITERS[extension_of(file)])
    if delimiter == "\t" and not is_cut and not _is_quoted_well(text):
        yield from _parse(file, text, delimiter, quoting=csv.QUOTE_NONE)
    else:
        yield from _parse(file, text, delimiter, strict=not is_cut)


def _parse(file: str, text: str, delimiter: str, **how: Any) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **how)
    start = 1
    try:
        for record in reader:
            if any(value.strip() for value in record):
                yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        advice = "put a text with quotes in quotes, and double those within"
        raise ValueError(f"{file}, line {start}: {error}; {advice}") from error


def _is_quoted_well(text: str) -> bool:
    try:
        return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return False


def _choose_delimiter(text: str, delimiters: str) -> str:
    """The one that divides the first records alike, and into most fields."""

    def fit(delimiter: str) -> tuple[bool, int]:
        records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            counts = [len(record) for record in islice(records, 10) if record]
        except csv.Error:  # a field without an end
            return False, 0
        return len(set(counts)) == 1 and counts[0] > 1, counts[0] if counts else 0

    return max(delimiters, key=fit)
