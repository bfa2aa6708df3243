from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.prepare.rows import Columns, Entry, choose_columns, join_rows
from tests.messages import names
from tests.prepare.making import PNG, write_folder


def entries(*rows: dict[str, Any]) -> list[Entry]:
    return [Entry(f"table:{number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"id": "7", "file_name": "a.png", "text": "an owl"}, ("file_name", ["text"])),
        ({"Image Path": "a.png", "Caption": "an owl", "n": "2"}, ("Image Path", ["Caption"])),
        ({"caption_1": "an owl", "caption_2": "a bird", "image": "a.png"}, ("image", ["caption_1", "caption_2"])),
        ({"thumbnail": "t.png", "image": "a.png", "caption": "an owl"}, ("image", ["caption"])),
        ({"x": "a.png", "y": "an owl in a tree", "z": "owl", "n": "2"}, ("x", ["y"])),
        ({"image": "a.png", "captions": ["one", "two"]}, ("image", ["captions"])),
        ({"image": 7, "where": "a.png", "text": "an owl"}, ("where", ["text"])),
        ({"url": "http://example.org/a.png", "caption": "an owl"}, ("url", ["caption"])),
    ],
)
def test_columns_are_found_by_name_and_then_by_content(row: dict[str, Any], columns: tuple[str, list[str]]) -> None:
    assert choose_columns(entries(row)) == Columns(columns[0], tuple(columns[1]))


@pytest.mark.parametrize(
    "row",
    [{"file": "a.png", "n": "3"}, {"a": "an owl", "b": "2"}, {"image": "a.png", "text": "", "conversations": []}, {}],
)
def test_a_table_without_both_is_none_of_pictures(row: dict[str, Any]) -> None:
    assert choose_columns(entries(row)) is None


def test_rows_of_one_picture_are_joined(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.png": PNG, "b.png": PNG})
    rows = entries(
        {"file": "a.png", "text": "one", "n": 1},
        {"file": "b.png", "text": "two"},
        {"file": "./a.png", "text": "three"},
        {"file": "a.png", "text": "one"},
    )
    first, second = join_rows(folder, rows, Columns("file", ("text",)), "table.csv")
    assert (first.name, first.captions, first.fields) == ("table:1", ("one", "three"), {"n": 1})
    assert (second.name, second.captions) == ("table:2", ("two",))


def test_what_is_wrong_with_a_row_is_its_problem(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.png": PNG})
    rows = [
        *entries(
            {"file": "missing.png", "text": "one"}, {"file": "missing.png", "text": "two"}, {"file": "", "text": "x"}
        ),
        *[Entry("table:4", {}, "it is broken"), Entry("table:5", {"file": None, "text": "y"})],
    ]
    items = {item.name: item for item in join_rows(folder, rows, Columns("file", ("text",)), "table.csv")}
    assert list(items) == ["table:1", "table:3", "table:4", "table:5"]
    assert names(str(items["table:1"].problem), "'missing.png'")
    assert items["table:1"].captions == ("one", "two")
    assert names(str(items["table:3"].problem), "'file'")
    assert items["table:4"].problem == "it is broken"
