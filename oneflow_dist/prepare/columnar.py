"""Tables of pictures in parquet and Arrow files, as Hugging Face's datasets writes them and as others do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from oneflow_dist.prepare.captions import join_captions, list_texts, rank_of
from oneflow_dist.prepare.folders import Folder, parent_of, split_of
from oneflow_dist.prepare.items import Blob, Item, Row, Source, open_arrow
from oneflow_dist.prepare.packages import need
from oneflow_dist.prepare.rows import PATHS, SAMPLE, Entry, choose_columns, files_of, join_rows

ON_DISK = ("state.json", "dataset_info.json")  # beside the .arrow files of save_to_disk
DICTIONARY = "dataset_dict.json"  # above these, where there are splits
PICTURE_NAMES = (*PATHS, "img", "pixel_values", "jpg", "png", "webp", "bytes", "image_bytes")


class _Table(NamedTuple):
    """What is read of one file."""

    file: str
    pictures: list[str]  # columns that hold bytes
    others: list[str]  # columns that do not
    names: dict[str, list[str]]  # of the classes of a column of numbers
    groups: list[list[dict[str, Any]]]  # the rows of each row group, without pictures
    paths: list[list[str | None] | None]  # of each row group: of its pictures, where it has no bytes of them


def datasets_of(folder: Folder) -> list[str]:
    """The Arrow files of datasets on disk."""
    homes = {parent_of(file) for file in folder.files if file.rpartition("/")[2] in ON_DISK}
    return [file for file in folder.with_extension("arrow") if parent_of(file) in homes]


def read_columnar(folder: Folder, files: list[str], kind: str) -> Source:
    """The rows of all files in their order.

    Raises:
        ValueError: there is none, pyarrow is missing, or a file is broken or holds no picture.
    """
    if not files:
        raise ValueError(f"{folder.root}: no {kind} in it")
    items: list[Item] = []
    unread: Counter[str] = Counter()
    for file in files:
        table = _open(folder, file)
        if table.pictures:
            items += _items(folder, table)
            unread.update(f"column {name}" for name in table.pictures[1:])
        else:
            items += _items_by_path(folder, table)
    own = {f"{parent_of(file)}/{name}".lstrip("/") for file in files for name in ON_DISK}
    own.add(DICTIONARY)
    return Source(kind=kind, items=items, unread=folder.unread({*files, *own, *files_of(items)}) + unread)


def _open(folder: Folder, file: str) -> _Table:
    """A file's columns, and all it says but pictures, which stay where they are.

    Raises:
        ValueError: it cannot be read.
    """
    arrow, path = need("pyarrow"), folder.root / file
    try:
        if file.lower().endswith(".parquet"):
            with need("pyarrow.parquet").ParquetFile(path) as opened:
                return _read(file, opened.schema_arrow, _parquet_groups(opened))
        table = open_arrow(path)
        return _read(file, table.schema, [_Group(table.num_rows, table.select, _has_no_bytes(table))])
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); write it again") from error


class _Group(NamedTuple):
    """The rows that are read together."""

    num_rows: int
    select: Callable[[list[str]], Any]  # some columns, as a `pyarrow.Table`
    has_no_bytes: Callable[[str], bool]  # whether a column of pictures only has their paths


def _read(file: str, schema: Any, groups: list[_Group]) -> _Table:
    pictures, others = _pictures(schema), _others(schema)
    rows = [group.select(others).to_pylist() or [{} for _ in range(group.num_rows)] for group in groups]
    paths = [_paths(group, pictures[0]) if pictures else None for group in groups]
    return _Table(file, pictures, others, _class_names(schema), rows, paths)


def _parquet_groups(file: Any) -> list[_Group]:
    def group(at: int) -> _Group:
        said = file.metadata.row_group(at)
        nulls = {
            chunk.path_in_schema: chunk.statistics.null_count
            for chunk in (said.column(number) for number in range(said.num_columns))
            if chunk.statistics is not None and chunk.statistics.has_null_count
        }
        return _Group(
            said.num_rows,
            lambda columns: file.read_row_group(at, columns=columns),
            lambda column: nulls.get(f"{column}.bytes") == said.num_rows,
        )

    return [group(at) for at in range(file.num_row_groups)]


def _has_no_bytes(table: Any) -> Callable[[str], bool]:
    def look(column: str) -> bool:
        chunks = table.column(column).chunks if need("pyarrow").types.is_struct(table.schema.field(column).type) else []
        return bool(chunks) and all(chunk.field("bytes").null_count == len(chunk) for chunk in chunks)

    return look


def _paths(group: _Group, column: str) -> list[str | None] | None:
    """Where the pictures lie that are not in the table; None where they are in it."""
    if not group.has_no_bytes(column):
        return None
    values = group.select([column]).column(column).to_pylist()
    return [value.get("path") if isinstance(value, dict) else None for value in values]


def _pictures(schema: Any) -> list[str]:
    """Columns of bytes, or of structs with bytes, the most telling name first."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    return sorted(found, key=lambda name: PICTURE_NAMES.index(name) if name in PICTURE_NAMES else len(PICTURE_NAMES))


def _holds_bytes(kind: Any) -> bool:
    types = need("pyarrow").types
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _others(schema: Any) -> list[str]:
    """Columns that JSON can say: text, numbers, and lists and structs of them."""
    types = need("pyarrow").types

    def is_plain(kind: Any) -> bool:
        if types.is_struct(kind):
            return all(is_plain(kind.field(at).type) for at in range(kind.num_fields))
        if types.is_list(kind) or types.is_large_list(kind):
            return is_plain(kind.value_type)
        is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        return is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    return [field.name for field in schema if is_plain(field.type)]


def _class_names(schema: Any) -> dict[str, list[str]]:
    """What the numbers of labels mean, where datasets has written it into the file."""
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = said.get("info", {}).get("features") or {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _items(folder: Folder, table: _Table) -> Iterator[Item]:
    """One item for each row; labels are captions where nothing else is."""
    captions, split = _caption_columns(table), split_of(table.file)
    column, number = table.pictures[0], 0
    for group, rows in enumerate(table.groups):
        for at, row in enumerate(rows):
            number += 1
            name = f"{table.file}:{number}"
            values = _named_classes(row, table.names)
            said = join_captions(text for each in captions for text in list_texts(values[each]))
            fields = split | {key: value for key, value in values.items() if key not in captions}
            paths = table.paths[group]
            try:
                blob = (
                    Blob(name=name, path=folder.root / table.file, row=Row(group, at, column))
                    if paths is None
                    else folder.blob(folder.find(paths[at] or "", parent_of(table.file)))
                )
            except ValueError as error:
                yield Item(name=name, captions=said, fields=fields, problem=str(error))
            else:
                yield Item(name=name, parts=(blob,), captions=said, fields=fields)


def _items_by_path(folder: Folder, table: _Table) -> list[Item]:
    """Of a table that names its pictures."""
    rows = [row for group in table.groups for row in group]
    entries = [Entry(f"{table.file}:{number}", row) for number, row in enumerate(rows, start=1)]
    columns = choose_columns(entries)
    if columns is None:
        names = ", ".join(table.others) or "no columns that are read"
        raise ValueError(f"{table.file} has {names}, but no column of pictures, as bytes or as paths beside captions")
    return join_rows(folder, entries, columns, table.file)


def _caption_columns(table: _Table) -> list[str]:
    """All columns called as captions are; else the one column of text, or of labels."""
    sample = [row for group in table.groups for row in group[:SAMPLE]][:SAMPLE]
    texts = [name for name in table.others if any(list_texts(row.get(name)) for row in sample)]
    named = [name for name in texts if rank_of(name) is not None]
    if named or len(texts) == 1:
        return named or texts
    return list(table.names)[:1] if not texts else []


def _named_classes(row: Mapping[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    def name(key: str, value: Any) -> Any:
        is_known = key in names and isinstance(value, int) and 0 <= value < len(names[key])
        return names[key][value] if is_known else value

    return {key: name(key, value) for key, value in row.items()}
