from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from oneflow_dist.prepare.beside import has_captions_beside, read_pictures
from tests.messages import names
from tests.prepare.making import PNG, captions_of, picture_of, problems_of, write_folder


def test_captions_lie_beside_in_several_ways(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        {
            "a.png": PNG,
            "a.txt": "an owl\nin a tree\n",
            "b/b.JPG": b"",
            "b/b.caption": "a cod",
            "c.webp": b"",
            "c.json": {"title": "a hawk", "width": 3},
            "d.png": PNG,
            "d.png.txt": "a wren",
            "e.v1.png": PNG,
            "e.v1.txt": "a key with dots",
        },
    )
    source = read_pictures(folder, "beside")
    assert captions_of(source) == {
        "a.png": ["an owl\nin a tree"],
        "b/b.JPG": ["a cod"],
        "c.webp": ["a hawk"],
        "d.png": ["a wren"],
        "e.v1.png": ["a key with dots"],
    }
    assert [item.fields for item in source.items if item.fields] == [{"width": 3}]
    assert picture_of(source.items[0]).read() == PNG
    assert names(source.kind, ".caption, .json, .txt")
    assert source.unread == {}


def test_a_picture_may_have_several_captions_or_none(tmp_path: Path) -> None:
    files = {
        "a.png": PNG,
        "a.txt": "one",
        "a.caption": "two",
        "a.json": {"caption": "three"},
        "b.png": PNG,
        "b.txt": " \n",
    }
    source = read_pictures(write_folder(tmp_path, files), "beside")
    assert captions_of(source) == {"a.png": ["one", "two"], "b.png": []}


def test_pictures_of_one_name_share_the_caption(tmp_path: Path) -> None:
    source = read_pictures(write_folder(tmp_path, {"a.png": PNG, "a.jpg": b"", "a.txt": "one"}), "beside")
    assert captions_of(source) == {"a.jpg": ["one"], "a.png": ["one"]}


def test_names_match_however_their_accents_are_composed(tmp_path: Path) -> None:
    composed = "café"
    files = {f"{unicodedata.normalize('NFD', composed)}.png": PNG, f"{composed}.txt": "a café"}
    assert list(captions_of(read_pictures(write_folder(tmp_path, files), "beside")).values()) == [["a café"]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_captions_are_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    folder = write_folder(tmp_path, {"a.png": PNG, "a.txt": "ein Käuzchen\r\n".encode(encoding)})
    assert captions_of(read_pictures(folder, "beside")) == {"a.png": ["ein Käuzchen"]}


def test_translations_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.png": PNG, "a.txt": "An owl.\nde.utf8=Eine Eule.\nfr.utf8=Un hibou.\n"})
    source = read_pictures(folder, "beside")
    assert captions_of(source) == {"a.png": ["An owl."]}
    assert source.unread == {"translations": 2}


def test_what_belongs_to_no_picture_is_counted(tmp_path: Path) -> None:
    source = read_pictures(write_folder(tmp_path, {"a.png": PNG, "b.txt": "x", "c.svg": "", "d.svg": ""}), "beside")
    assert source.unread == {"txt": 1, "svg": 2}


def test_the_split_is_a_field(tmp_path: Path) -> None:
    source = read_pictures(write_folder(tmp_path, {"train/a.png": PNG, "val/b.png": PNG, "c.png": PNG}), "beside")
    assert [item.fields for item in source.items] == [{}, {"split": "train"}, {"split": "validation"}]


def test_names_are_captions_where_that_is_wanted_and_nothing_lies_beside(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"owls/red_bird-02.png": PNG, "owls/b.png": PNG, "owls/b.txt": "one"})
    assert captions_of(read_pictures(folder, "beside"))["owls/red_bird-02.png"] == []
    assert captions_of(read_pictures(folder, "files")) == {"owls/red_bird-02.png": ["red bird"], "owls/b.png": ["one"]}
    assert captions_of(read_pictures(folder, "folders"))["owls/red_bird-02.png"] == ["owls"]


def test_a_broken_text_is_the_problem_of_its_picture(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.json": "{", "b.png": PNG, "b.txt": b"x" * (1 << 20) + b"y", "c.png": PNG, "c.txt": "one"}
    source = read_pictures(write_folder(tmp_path, files), "beside")
    assert captions_of(source) == {"c.png": ["one"]}
    assert names(problems_of(source)["a.png"], ".json")
    assert names(problems_of(source)["b.png"], "b.txt", "1,048,576")


def test_links_out_of_the_folder_are_problems(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.txt"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "secret.txt")
    source = read_pictures(write_folder(tmp_path / "in", {"b.png": PNG}), "beside")
    assert names(problems_of(source)["a.png"], "link")
    assert names(problems_of(source)["b.png"], "b.txt", "link")


def test_a_caption_that_differs_from_the_picture_in_case_is_a_problem(tmp_path: Path) -> None:
    source = read_pictures(write_folder(tmp_path, {"owl.png": PNG, "Owl.txt": "an owl"}), "beside")
    assert captions_of(source) == {"owl.png": []}
    assert names(problems_of(source)["Owl.txt"], "owl.png")
    assert source.unread == {}


def test_whether_anything_lies_beside(tmp_path: Path) -> None:
    assert has_captions_beside(write_folder(tmp_path / "with", {"a.png": PNG, "a.txt": "one"}))
    assert not has_captions_beside(write_folder(tmp_path / "without", {"a.png": PNG, "b.txt": "one"}))
