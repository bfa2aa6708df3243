from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from oneflow_dist.prepare.columnar import datasets_of, read_columnar
from oneflow_dist.prepare.folders import Folder
from oneflow_dist.prepare.items import Source
from tests.messages import names, refused
from tests.prepare.making import PNG, captions_of, picture_of, png, problems_of, write_files, write_folder

PICTURES = [png("red"), png("green"), png("blue")]
STRUCTS = [{"bytes": content, "path": None} for content in PICTURES]
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])  # of datasets' Image
LABELS = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}


def write_parquet(path: Path, columns: dict[str, Any], said: dict[str, Any] | None = None, rows: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if said is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def write_arrow(path: Path, columns: dict[str, Any]) -> None:
    """As `datasets.save_to_disk` has it."""
    write_files(path.parent, {"dataset_info.json": "{}", "state.json": "{}"})
    table = pyarrow.table(columns)
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def read(root: Path, *files: str) -> Source:
    return read_columnar(Folder(root), list(files) or ["data.parquet"], "parquet")


@pytest.mark.parametrize("column", [PICTURES, STRUCTS])
def test_parquet_holds_pictures_as_bytes_or_structs(tmp_path: Path, column: list[Any]) -> None:
    write_parquet(tmp_path / "data.parquet", {"image": column, "text": ["one", "two", ""], "n": [1, 2, 3]})
    source = read(tmp_path)
    assert [picture_of(item).read() for item in source.items] == PICTURES
    assert [(item.name, item.captions, item.fields) for item in source.items] == [
        ("data.parquet:1", ("one",), {"n": 1}),
        ("data.parquet:2", ("two",), {"n": 2}),
        ("data.parquet:3", (), {"n": 3}),
    ]
    assert source.unread == {}


def test_captions_may_be_lists_and_in_several_columns(tmp_path: Path) -> None:
    columns = {
        "image": PICTURES,
        "captions": [["a", "b"], ["c"], []],
        "title": ["A", "c", None],
        "url": ["x", "y", "z"],
    }
    write_parquet(tmp_path / "data.parquet", columns)
    assert list(captions_of(read(tmp_path)).values()) == [["a", "b", "A"], ["c"], []]


def test_the_only_text_is_the_caption(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data.parquet", {"picture": PICTURES, "what": ["one", "two", "three"]})
    assert list(captions_of(read(tmp_path)).values()) == [["one"], ["two"], ["three"]]


def test_labels_are_named_and_are_captions_where_nothing_else_is(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": PICTURES, "label": [0, 1, -1]}, LABELS)
    write_parquet(tmp_path / "b.parquet", {"image": PICTURES, "label": [0, 1, 0], "text": ["x", "y", "z"]}, LABELS)
    alone, beside = read(tmp_path, "a.parquet"), read(tmp_path, "b.parquet")
    assert list(captions_of(alone).values()) == [["cat"], ["dog"], []]
    assert list(captions_of(beside).values()) == [["x"], ["y"], ["z"]]
    assert [item.fields for item in beside.items] == [{"label": "cat"}, {"label": "dog"}, {"label": "cat"}]


def test_one_column_of_pictures_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data.parquet", {"mask": PICTURES[::-1], "image": PICTURES, "text": ["a", "b", "c"]})
    source = read(tmp_path)
    assert picture_of(source.items[0]).read() == PICTURES[0]
    assert source.unread == {"column mask": 1}


def test_files_are_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write_parquet(tmp_path / f"data/{name}.parquet", {"image": PICTURES[:1], "text": ["one"]})
    source = read(tmp_path, "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet")
    assert [item.fields for item in source.items] == [{"split": "test"}, {"split": "train"}]


def test_a_table_may_name_pictures_that_lie_beside_it(tmp_path: Path) -> None:
    write_files(tmp_path, {"images/a.png": PNG})
    structs = [{"bytes": None, "path": f"{each}.png"} for each in ("images/a", "images/gone", "../secret")]
    pictures = pyarrow.array(structs, STRUCT)
    write_parquet(tmp_path / "structs.parquet", {"image": pictures, "text": ["one", "two", "three"]})
    write_parquet(tmp_path / "paths.parquet", {"file_name": ["a.png", "gone.png"], "text": ["one", "two"]})
    for name, missing in (("structs", ["structs.parquet:2", "structs.parquet:3"]), ("paths", ["paths.parquet:2"])):
        source = read(tmp_path, f"{name}.parquet")
        assert captions_of(source) == {"images/a.png": ["one"]}
        assert list(problems_of(source)) == missing
        assert source.unread == {"parquet": 1}


def test_datasets_on_disk(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", {"image": STRUCTS, "text": ["one", "two", "three"]})
    write_files(tmp_path, {"dataset_dict.json": "{}", "other.arrow": b"ARROW1"})
    files = datasets_of(Folder(tmp_path))
    assert files == ["test/data-00000-of-00001.arrow", "train/data-00000-of-00001.arrow"]
    source = read(tmp_path, *files)
    assert [picture_of(item).read() for item in source.items] == PICTURES * 2
    assert [item.fields["split"] for item in source.items] == ["test"] * 3 + ["train"] * 3
    assert source.unread == {"arrow": 1}


def test_a_dataset_on_disk_may_name_its_pictures(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": PNG})
    pictures = pyarrow.array([{"bytes": None, "path": str(tmp_path / "a.png")}], STRUCT)
    write_arrow(tmp_path / "data.arrow", {"image": pictures, "text": ["one"]})
    assert captions_of(read(tmp_path, "data.arrow")) == {"a.png": ["one"]}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1 but no more")
    assert "data.parquet" in refused(read, tmp_path)


def test_a_table_without_pictures_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data.parquet", {"x": [1, 2], "y": ["a", "b"]})
    assert names(refused(read, tmp_path), "data.parquet", "x, y")
    assert "parquet" in refused(read_columnar, write_folder(tmp_path, {}), [], "parquet")
