from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.prepare.items import Source
from oneflow_dist.prepare.tables import metadata_of, read_tables, tables_of
from tests.messages import names, refused
from tests.prepare.making import PNG, captions_of, problems_of, write_folder


def read(root: Path, table: str | bytes, name: str = "captions.csv") -> Source:
    folder = write_folder(root, {"images/a.png": PNG, "images/b.png": PNG, name: table})
    return read_tables(folder, [name], "table")


@pytest.mark.parametrize(
    "table",
    [
        "file,caption\na.png,an owl\nb.png,a cod\n",
        "\ufefffile;caption\r\na.png;an owl\r\n\r\nb.png;a cod\r\n",
        "file\tcaption\na.png\tan owl\nb.png\ta cod",
        "a.png|an owl\nb.png|a cod\n",
        "caption,file\nan owl,images\\a.png\na cod,images/b.png\n",
        '"file","caption"\n"a.png","an owl"\n"b.png","a cod"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_are_read_however_they_are_written(tmp_path: Path, table: str, encoding: str) -> None:
    source = read(tmp_path, table.encode(encoding))
    assert captions_of(source) == {"images/a.png": ["an owl"], "images/b.png": ["a cod"]}
    assert source.unread == {}


def test_fields_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    table = 'file,caption,n\na.png,"an owl, ""Bubo""\nin a tree",1\nb.png,"a cod",2\n'
    source = read(tmp_path, table)
    assert captions_of(source) == {"images/a.png": ['an owl, "Bubo"\nin a tree'], "images/b.png": ["a cod"]}
    assert [(item.name, item.fields) for item in source.items] == [
        ("captions.csv:2", {"n": "1"}),
        ("captions.csv:4", {"n": "2"}),
    ]


def test_quotes_that_tabs_leave_open_are_text(tmp_path: Path) -> None:
    source = read(tmp_path, 'file\tcaption\na.png\t"Owl" he said\nb.png\ta 3" cod\n', "captions.tsv")
    assert captions_of(source) == {"images/a.png": ['"Owl" he said'], "images/b.png": ['a 3" cod']}


def test_several_columns_and_rows_of_captions_are_all_read(tmp_path: Path) -> None:
    source = read(tmp_path, "file,caption,caption,text\na.png,one,two,three\na.png,four,,\n")
    assert captions_of(source) == {"images/a.png": ["one", "two", "three", "four"]}
    assert source.unread == {"png": 1}


def test_a_row_of_another_length_is_a_problem(tmp_path: Path) -> None:
    source = read(tmp_path, "file,caption\na.png,an owl, at night\nb.png,a cod\n")
    assert captions_of(source) == {"images/b.png": ["a cod"]}
    assert names(problems_of(source)["captions.csv:2"], 3, 2)


def test_a_quote_without_an_end_is_refused(tmp_path: Path) -> None:
    assert names(refused(read, tmp_path, 'file,caption\na.png,an owl\nb.png,"a cod\n'), "captions.csv, line 3")


def test_lines_of_json(tmp_path: Path) -> None:
    good = '{"image": "a.png", "caption": ["one", "two"], "n": 1}\n\n{"image": "b.png", "caption": "three\u2028four"}\n'
    lines = good + "[]\n{\n"
    source = read(tmp_path, lines, "captions.jsonl")
    assert captions_of(source) == {"images/a.png": ["one", "two"], "images/b.png": ["three\u2028four"]}
    assert list(problems_of(source)) == ["captions.jsonl:4", "captions.jsonl:5"]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "file_name,text\na.png,an owl\nb.png,a cod\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "an owl"}\n{"file_name": "b.png", "text": "a cod"}\n'),
    ],
)
def test_an_imagefolder_has_metadata_in_each_split(tmp_path: Path, name: str, table: str) -> None:
    files = {f"{split}/{file}": PNG for split in ("train", "test") for file in ("a.png", "b.png")}
    folder = write_folder(tmp_path, {**files, f"train/{name}": table, f"test/{name}": table})
    assert metadata_of(folder) == [f"test/{name}", f"train/{name}"]
    assert tables_of(folder) == []
    source = read_tables(folder, metadata_of(folder), "imagefolder")
    assert captions_of(source) == {file: ["an owl" if "a.png" in file else "a cod"] for file in sorted(files)}
    assert [item.fields["split"] for item in source.items] == ["test", "test", "train", "train"]
    assert source.unread == {}


def test_tables_of_something_else_are_none_of_pictures(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        {
            "a.png": PNG,
            "numbers.csv": "x,y\n1,2\n",
            "empty.csv": "",
            "open.csv": '"',
            "binary.csv": bytes(range(256)),
            "long.csv": '"' + "x" * 200_000,
            "captions.tsv": "file\tcaption\na.png\tan owl\n",
            "large.csv": "file,caption\n" + "a.png,an owl\n" * 50_000,
        },
    )
    assert tables_of(folder) == ["captions.tsv", "large.csv"]


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    assert names(refused(read, tmp_path, "x,y\n1,2\n"), "captions.csv", "x, y", "file_name")
    assert "captions.csv" in refused(read_tables, write_folder(tmp_path, {}), [], "table")


def test_a_path_that_leaves_the_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    source = read(tmp_path / "in", "file,caption\n../secret.png,an owl\n/etc/x.png,a cod\nhttp://x.org/y.png,a cat\n")
    assert captions_of(source) == {}
    assert len(problems_of(source)) == 3
