from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from oneflow_dist.prepare.folders import Folder, extension_of, open_folder, parent_of, split_of
from tests.messages import names, naming, refused
from tests.prepare.making import write_files, write_folder

COMPOSED = "café.png"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_files_are_sorted_and_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"b/2.PNG": "", "b/1.png": "", "a.txt": "", "c/d/e.txt": "", "noextension": ""})
    assert folder.files == ["a.txt", "b/1.png", "b/2.PNG", "c/d/e.txt", "noextension"]
    assert folder.pictures == ["b/1.png", "b/2.PNG"]
    assert folder.with_extension("txt") == ["a.txt", "c/d/e.txt"]
    assert folder.unread({"b/1.png", "a.txt"}) == {"png": 1, "txt": 1, "": 1}


def test_hidden_files_are_counted_but_not_listed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {".git/owl.png": "", "._owl.png": "", "__MACOSX/owl.png": "", "owl.png": ""})
    assert folder.files == ["owl.png"]
    assert folder.unread({"owl.png"}) == {"hidden": 3}


@pytest.mark.parametrize(
    "reference",
    [
        "birds/a owl.png",
        "./birds/a owl.png",
        "fish/../birds/a owl.png",
        "birds\\a owl.png",
        "birds/a%20owl.png",
        "birds/a%20owl.png?width=3#top",
        " birds/a owl.png\r",
        "a owl.png",
    ],
)
def test_a_path_is_found_however_it_is_written(tmp_path: Path, reference: str) -> None:
    assert write_folder(tmp_path, {"birds/a owl.png": "", "fish/a cod.png": ""}).find(reference) == "birds/a owl.png"


def test_a_path_may_be_absolute_where_it_is_of_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"birds/owl.png": ""})
    assert folder.find(f"{folder.root}/birds/owl.png") == "birds/owl.png"
    assert folder.find(f"file://{folder.root}/birds/owl.png") == "birds/owl.png"


def test_the_folder_of_the_table_comes_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"owl.png": "", "birds/owl.png": ""})
    assert folder.find("owl.png", "birds") == "birds/owl.png"
    assert folder.find("../owl.png", "birds") == "owl.png"
    assert folder.find("owl.png") == "owl.png"


@pytest.mark.parametrize(("stored", "written"), [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)])
def test_letters_with_accents_are_the_same_however_they_are_composed(tmp_path: Path, stored: str, written: str) -> None:
    folder = write_folder(tmp_path, {f"birds/{stored}": ""})
    assert folder.find(f"birds/{written}") == folder.find(written) == f"birds/{stored}"


@pytest.mark.parametrize("reference", ["../secret.png", "/etc/secret.png", "C:\\secret.png", "a/../../secret.png"])
def test_what_lies_outside_is_never_found(tmp_path: Path, reference: str) -> None:
    write_files(tmp_path, {"secret.png": "", "in/owl.png": ""})
    message = refused(Folder(tmp_path / "in").find, reference)
    assert names(message, "out of the folder", repr(reference))


@pytest.mark.parametrize("reference", ["http://example.org/a.png", "HTTPS://example.org/a.png", "//example.org/a.png"])
def test_nothing_is_fetched(tmp_path: Path, reference: str) -> None:
    assert names(refused(write_folder(tmp_path, {"a.png": ""}).find, reference), "nothing is fetched", repr(reference))


def test_links_that_lead_outside_are_listed_but_not_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"secret.png": "", "in/owl.png": ""})
    root = tmp_path / "in"
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "nowhere.png").symlink_to("missing.png")
    (root / "same.png").symlink_to("owl.png")
    (root / "loop").symlink_to(root)
    folder = Folder(root)
    assert folder.files == ["nowhere.png", "out.png", "owl.png", "same.png"]
    assert {file: folder.problem(file) is not None for file in folder.files} == {
        "nowhere.png": True,
        "out.png": True,
        "owl.png": False,
        "same.png": False,
    }
    assert "link" in refused(folder.find, "out.png")
    assert folder.unread(set(folder.files)) == {"link to a folder": 1}


def test_a_name_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    folder = Folder(tmp_path)
    assert "UTF-8" in str(folder.problem(folder.files[0]))


def test_a_missing_file_is_named_with_the_one_that_is_near(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"birds/owl.jpg": ""})
    assert names(refused(folder.find, "birds/Owl.JPG"), "'birds/Owl.JPG'", "birds/owl.jpg")
    assert names(refused(folder.find, "birds/hawk.jpg"), "does not exist", "'birds/hawk.jpg'")


def test_a_name_that_several_folders_have_is_no_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a/owl.jpg": "", "b/owl.jpg": ""})
    assert names(refused(folder.find, "owl.jpg"), "'owl.jpg'", "a/owl.jpg", "b/owl.jpg")
    assert folder.find("b/owl.jpg") == "b/owl.jpg"


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owl.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for path, problem in (
        ("missing", "does not exist"),
        ("owl.png", "a file, not a folder"),
        ("empty", "empty folder"),
    ):
        with pytest.raises(ValueError, match=naming(tmp_path / path, problem)):
            open_folder(tmp_path / path)


def test_parts_of_a_path() -> None:
    assert [extension_of(file) for file in ("a.b/c", "a.JPG", "b/a.tar.gz", "a.")] == ["", "jpg", "gz", ""]
    assert [parent_of(file) for file in ("a/b/c.png", "c.png")] == ["a/b", ""]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train/owl.png", "train"),
        ("data/Val/owl.png", "validation"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("dev.csv", "validation"),
        ("train.png", None),
        ("trains/owl.png", None),
    ],
)
def test_the_split_that_a_path_names(file: str, split: str | None) -> None:
    assert split_of(file) == ({} if split is None else {"split": split})
