from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.prepare.items import Item, Source
from oneflow_dist.prepare.settings import check_options, describe_source, kept_settings
from tests.messages import names, refused
from tests.prepare.prepared import options, write_pairs

NOTHING = Source(kind="none", items=[Item(name="x")], unread={})


def keep(output: Path, source: Path, **others: Any) -> None:
    with kept_settings(options(source, output, **others), describe_source(source, NOTHING)):
        pass


def test_other_settings_are_an_error_that_names_both(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", 2)
    keep(tmp_path / "out", source, workers=1)
    keep(tmp_path / "out", source, workers=2)
    message = refused(lambda: keep(tmp_path / "out", source, held_out=0.5))
    assert names(message, "settings.json", "held_out", "0.05", "0.5")


@pytest.mark.parametrize("change", ["added", "longer", "touched"])
def test_a_source_that_has_changed_is_an_error_that_says_so(change: str, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", 2)
    keep(tmp_path / "out", source)
    caption = source / "0001.txt"
    if change == "added":
        (source / "sub").mkdir()
        (source / "sub/new.png").write_bytes(b"")
    elif change == "longer":
        caption.write_text("longer than it was")
    else:
        os.utime(caption, ns=(0, 0))
    message = refused(lambda: keep(tmp_path / "out", source))
    assert names(message, f"{source}:", tmp_path / "out", "4 files", "files")
    assert "held_out" not in message


def test_the_size_of_the_pictures_in_a_run_decides_on_patches(tmp_path: Path) -> None:
    patches = {size: options(tmp_path, tmp_path, size=size).patch for size in (16, 64, 96, 128, 256)}
    assert patches == {16: 4, 64: 4, 96: 8, 128: 8, 256: 16}
    assert options(tmp_path, tmp_path, size=64, autoencoder="x").policy(8).multiple_of == 16


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    source, output = write_pairs(tmp_path / "in", 2), tmp_path / "out"
    output.mkdir()
    (output / "thesis.doc").write_text("years of work")
    assert names(refused(lambda: keep(output, source)), output, "thesis.doc")


def test_two_at_once_do_not_write_one_output(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", 2)
    found = describe_source(source, NOTHING)
    with kept_settings(options(source, tmp_path / "out"), found):
        assert names(refused(lambda: keep(tmp_path / "out", source)), tmp_path / "out")


@pytest.mark.parametrize("output", ["in", "in/out", "."])
def test_an_output_within_the_source_is_refused(output: str, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", 2)
    assert names(refused(check_options, options(source, tmp_path / output)), tmp_path / output, source)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"held_out": 1.0}, ("--held-out", "1.0")),
        ({"workers": 0}, ("--workers", "0")),
        ({"vocab_size": 100}, ("--vocab-size", "100")),
        ({"vocab_size": 300, "tokenizer": "bytes"}, ("--vocab-size", "300", "--tokenizer")),
        ({"name": "a/b"}, ("--name", "a/b")),
        ({"tokenizer": "/nowhere"}, ("/nowhere",)),
        ({"size": 30}, ("--size", "30", "32")),
        ({"max_aspect": 0.5}, ("--max-aspect", "0.5")),
    ],
)
def test_impossible_options_are_refused(others: dict[str, Any], named: tuple[str, ...], tmp_path: Path) -> None:
    assert names(refused(check_options, options(tmp_path / "in", tmp_path / "out", **others)), *named)
