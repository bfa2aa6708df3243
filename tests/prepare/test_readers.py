from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.prepare.folders import Folder
from oneflow_dist.prepare.readers import NAMES, find_layout, open_source
from tests.messages import names, refused
from tests.prepare.making import PNG, captions_of, write_files
from tests.prepare.test_columnar import write_arrow, write_parquet
from tests.tars import write_tar

TURNS = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "An owl."}]
TABLE = "file,caption\na.png,an owl\n"
FILES: dict[str, dict[str, Any]] = {
    "pictures": {"a.png": PNG, "a.txt": "an owl", "README.md": "about"},
    "imagefolder": {"train/a.png": PNG, "train/metadata.csv": TABLE, "README.md": "about"},
    "table": {"images/a.png": PNG, "captions.csv": TABLE, "numbers.csv": "1,2", "images/a.txt": "an owl"},
    "coco": {
        "train/a.png": PNG,
        "captions_train.json": {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": 1, "caption": "an owl"}],
        },
    },
    "llava": {"a.png": PNG, "chat.json": [{"image": "a.png", "conversations": TURNS}]},
    "pages": {"a.png": PNG, "a.html": "<p>an owl</p><img src=a.png>"},
}


def make(root: Path, layout: str) -> Path:
    write_files(root, FILES.get(layout, {}))
    columns = {"image": [PNG], "text": ["an owl"]}
    if layout == "webdataset":
        write_tar(root / "a.tar", {"a.png": PNG, "a.txt": b"an owl"})
    elif layout == "parquet":
        write_parquet(root / "a.parquet", columns)
    elif layout == "datasets":
        write_arrow(root / "a.arrow", columns)
    return root


@pytest.mark.parametrize("layout", NAMES)
def test_every_layout_is_recognised(tmp_path: Path, layout: str) -> None:
    root = make(tmp_path, layout)
    assert find_layout(Folder(root)) == layout
    for named in (None, layout):
        (item,) = open_source(root, named).items
        assert item.problem is None
        assert item.captions == (() if layout in ("llava", "pages") else ("an owl",))


@pytest.mark.parametrize("first", ["webdataset", "parquet", "datasets"])
def test_pictures_beside_files_that_hold_pictures_are_another_layout(tmp_path: Path, first: str) -> None:
    make(make(tmp_path, first), "pictures")
    assert names(refused(open_source, tmp_path), first, "pictures", f"--layout {first}")
    assert captions_of(open_source(tmp_path, "pictures")) == {"a.png": ["an owl"]}
    assert len(open_source(tmp_path, first).items) == 1


@pytest.mark.parametrize(("first", "second"), [("webdataset", "table"), ("coco", "llava"), ("pages", "pictures")])
def test_of_two_layouts_one_has_to_be_chosen(tmp_path: Path, first: str, second: str) -> None:
    make(make(tmp_path, first), second)
    assert names(refused(open_source, tmp_path), first, second, f"--layout {first}")
    assert open_source(tmp_path, second).items


@pytest.mark.parametrize("layout", NAMES)
def test_a_layout_that_is_not_there_is_refused(tmp_path: Path, layout: str) -> None:
    write_files(tmp_path, {"a.xyz": ""})
    assert str(tmp_path) in refused(open_source, tmp_path, layout)


def test_nothing_that_is_known(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "x", "b.txt": "x", "c.psd": ""})
    message = refused(open_source, tmp_path)
    assert names(message, tmp_path, "2 .txt, 1 .psd", *NAMES)


def test_archives_have_to_be_unpacked(tmp_path: Path) -> None:
    assert names(refused(open_source, write_files(tmp_path, {"owls.zip": ""})), "owls.zip", "unpack")


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "table")
    assert names(refused(open_source, tmp_path, "folder"), "'folder'", *NAMES)
    assert names(refused(open_source, tmp_path, None, "names"), "'names'", "files")
    assert names(refused(open_source, tmp_path, None, "files"), "'files'", "pictures", "table")


def test_names_of_items_are_unique(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.png"}
    annotations = {"images": [image, image], "annotations": [{"image_id": 1, "caption": "an owl"}]}
    write_files(tmp_path, {"a.png": PNG, "captions_a.json": annotations})
    assert [item.name for item in open_source(tmp_path).items] == ["a.png", "a.png (2)"]


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": PNG for name in "ba" for number in (2, 10, 1)}
    found = [item.name for item in open_source(write_files(tmp_path, files)).items]
    assert found == sorted(files)


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert names(refused(open_source, tmp_path), "pyarrow", "oneflow_dist[prepare]")
