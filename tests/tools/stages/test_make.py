from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import Launcher, only_error
from tests.messages import naming
from tests.precompute.making import contents
from tests.tars import samples_of

SETS = {"text", "named", "digits", "drawn", "listed", "count"}  # and conversations:
SETS |= {"answers", "vqa", "nlvr", "rows", "describe", "draw"}


def test_every_set_is_there_twice_and_nothing_is_in_both(made: Path) -> None:
    assert {path.name.split("-")[0] for path in made.glob("*.tar")} == SETS
    for name in ("digits", "drawn", "listed", "count", "vqa", "nlvr", "rows"):
        train, heldout = (samples_of(*made.glob(f"{name}-{split}-*.tar")) for split in ("train", "heldout"))
        assert 0 < len(train) <= 24
        assert 0 < len(heldout) <= 24
        seen, unseen = (
            {data for files in part for end, data in files.items() if end.endswith("png")} for part in (train, heldout)
        )
        assert not seen & unseen


def test_the_vocabulary_knows_the_words_of_answers(made: Path) -> None:
    tokenizer = load_tokenizer(str(made / "words.tiktoken"))
    assert all(len(tokenizer.encode(word)) == 1 for word in ("yes", "no"))


def test_writing_again_changes_nothing(make: Callable[..., Path], made: Path) -> None:
    before = contents(made)
    assert contents(make(made)) == before


def test_nothing_is_written_beside_the_raw_shards(raw: Path, made: Path) -> None:
    assert all(path.suffix == ".tar" for path in raw.rglob("*") if path.is_file())


def test_a_pattern_without_a_place_for_the_split_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/stages/make.py", tmp_path / "made", "--text", "openstax/*.tar")
    assert (end.code, "--text: openstax/*.tar" in only_error(end)) == (2, True)
    assert not (tmp_path / "made").exists()


def test_one_shard_of_statements_is_refused(make: Callable[..., Path], raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming("--nlvr", "one shard")):
        make(tmp_path / "made", f"--nlvr={raw}/nlvr/nlvr-dev-000000.tar")


def test_without_the_package_the_error_names_the_extra(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=naming("tools/stages/make.py", "pip install 'oneflow_dist[experiments]'")):
        make(tmp_path / "made")
    assert not (tmp_path / "made").exists()
