from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.prepare.folders import Folder
from oneflow_dist.prepare.items import Source
from oneflow_dist.prepare.tars import packed_of, read_tars
from tests.messages import names, refused
from tests.prepare.making import PNG, captions_of, picture_of, png, problems_of, shown, write_files
from tests.tars import write_tar

OTHER = png("blue")


def read(root: Path, members: dict[str, bytes]) -> Source:
    write_tar(root / "a.tar", members)
    return read_tars(Folder(root))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_pairs_of_webdataset(tmp_path: Path) -> None:
    members = {
        "0001.jpg": PNG,
        "0001.txt": "an öwl\n".encode("latin-1"),
        "0001.json": encoded({"caption": "an öwl", "width": 3}),
        "birds/0002.png": OTHER,
        "birds/0002.json": encoded({"title": "a hawk"}),
        "0003.webp": PNG,
        "0003.cls": b"7",
        "0004.txt": b"a text alone",
        "0005.json": encoded({"x": 1}),
    }
    source = read(tmp_path, members)
    assert captions_of(replace_texts(source)) == {
        "a.tar/0001.jpg": ["an öwl"],
        "a.tar/birds/0002.png": ["a hawk"],
        "a.tar/0003.webp": [],
    }
    assert picture_of(source.items[1]).read() == OTHER
    assert source.items[0].fields == {"width": 3}
    assert source.items[3].parts == ("a text alone",)
    assert source.unread == {"cls": 1, "json": 1}


def replace_texts(source: Source) -> Source:
    """Without the texts that are alone."""
    items = [item for item in source.items if not all(isinstance(part, str) for part in item.parts)]
    return Source(kind=source.kind, items=items, unread=source.unread)


def test_many_tars_in_folders_are_one_source(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", {"1.png": PNG, "1.txt": b"one"})
    source = read_tars(Folder(tmp_path))
    assert [(item.name, item.fields) for item in source.items] == [
        ("train/0.tar/1.png", {"split": "train"}),
        ("val/0.tar/1.png", {"split": "validation"}),
    ]


def test_keys_may_have_dots(tmp_path: Path) -> None:
    members = {"photo.v1.png": PNG, "photo.v1.txt": b"one", "photo.v2.png": OTHER, "photo.v2.txt": b"two", "b.png": PNG}
    source = read(tmp_path, members)
    assert captions_of(source) == {"a.tar/photo.v1.png": ["one"], "a.tar/photo.v2.png": ["two"], "a.tar/b.png": []}
    assert source.unread == {}


def test_masks_beside_a_picture_are_not_read(tmp_path: Path) -> None:
    source = read(tmp_path, {"1.png": PNG, "1.seg.png": OTHER, "1.txt": b"one"})
    assert captions_of(source) == {"a.tar/1.png": ["one"]}
    assert source.unread == {"seg.png": 1}


def test_several_pictures_need_an_order(tmp_path: Path) -> None:
    source = read(tmp_path, {"1.0.png": PNG, "1.1.png": OTHER, "1.txt": b"one"})
    assert names(problems_of(source)["a.tar/1"], "segments", "0.png, 1.png")


def test_documents_of_this_project(tmp_path: Path) -> None:
    segments = [
        {"type": "text", "text": "Owls", "role": "title"},
        {"type": "image", "image": "0.png"},
        {"type": "text", "text": "They hunt.", "role": "answer"},
    ]
    (item,) = read(tmp_path, {"1.json": encoded({"segments": segments, "book": "Birds"}), "1.0.png": PNG}).items
    assert (item.name, shown(item.parts), item.fields) == (
        "a.tar/1",
        ["Owls", "<a.tar/1.0.png>", "They hunt."],
        {"book": "Birds"},
    )


@pytest.mark.parametrize(
    "value",
    [
        {"question": "What is it?", "answer": "An owl."},
        {"conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "An owl."}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": "An owl."},
            ]
        },
        {
            "segments": [
                {"type": "image", "image": "0.png"},
                {"type": "text", "text": "What is it?"},
                {"type": "text", "text": "An owl.", "role": "assistant"},
            ]
        },
    ],
)
def test_conversations_in_all_spellings(tmp_path: Path, value: dict[str, Any]) -> None:
    (item,) = read(tmp_path, {"1.json": encoded(value), "1.0.png": PNG}).items
    assert [(role, shown(parts)) for role, parts in item.turns] == [
        ("user", ["<a.tar/1.0.png>", "What is it?"]),
        ("assistant", ["An owl."]),
    ]


def test_what_is_wrong_with_a_sample_is_its_problem(tmp_path: Path) -> None:
    members = {
        "1.png": PNG,
        "1.json": b"{",
        "2.json": encoded({"segments": [{"type": "image", "image": "gone.png"}]}),
        "3.png": PNG,
        "3.txt": b"x" * ((1 << 20) + 1),
        "../4.png": PNG,
        "5.png": PNG,
        "5.pkl": b"boom",
    }
    source = read(tmp_path, members)
    assert list(problems_of(source)) == ["a.tar/1", "a.tar/2", "a.tar/3", "a.tar/../4.png"]
    assert captions_of(source) == {"a.tar/5.png": []}
    assert source.unread == {"pkl": 1}


def test_a_damaged_tar_gives_what_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": PNG, "1.txt": b"one", "2.png": PNG})
    path.write_bytes(path.read_bytes()[: 4 * 512 + 512 + 20])
    source = read_tars(Folder(tmp_path))
    assert captions_of(source) == {"a.tar/1.png": ["one"]}
    assert names(problems_of(source)["a.tar/2.png"], "cut off")


def test_compressed_tars_are_refused_with_advice(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": PNG})
    folder = Folder(write_files(tmp_path, {"b.tar.gz": b"", "c.zip": b""}))
    assert packed_of(folder) == ["b.tar.gz", "c.zip"]
    assert names(refused(read_tars, folder), "b.tar.gz", "gunzip")
    assert ".tar" in refused(read_tars, Folder(write_files(tmp_path / "none", {"a.png": PNG})))
