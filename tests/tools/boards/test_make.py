from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import run_main
from tests.precompute.making import contents
from tests.tars import samples_of
from tools.boards import make as program
from tools.boards.grammar import LABELS, read_caption, read_pictures, write_caption


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boards") / "made"
    run_main(program, folder, "--documents", "96")
    return folder


def test_a_folder_holds_shards_of_both_splits_and_a_vocabulary_of_words(made: Path) -> None:
    assert sorted(contents(made)) == ["pairs-heldout-000000.tar", "pairs-train-000000.tar", "words.tiktoken"]
    tokenizer = load_tokenizer(str(made / "words.tiktoken"))
    assert all(len(tokenizer.encode(write_caption(label))) == 3 for label in LABELS)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(made: Path, tmp_path: Path) -> None:
    run_main(program, tmp_path / "again", "--documents", "96")
    run_main(program, tmp_path / "other", "--documents", "96", "--seed", "1")
    first, again, other = contents(made), contents(tmp_path / "again"), contents(tmp_path / "other")
    assert again == first
    assert {name for name in other if other[name] == first[name]} == {"words.tiktoken"}


@pytest.mark.parametrize(("split", "number"), [("train", 96), ("heldout", 12)])
def test_captions_tell_what_pictures_show(split: str, number: int, made: Path) -> None:
    samples = samples_of(*made.glob(f"pairs-{split}-*.tar"))
    assert len(samples) == number
    for files in samples:
        label = tuple(json.loads(files["json"]).values())
        assert read_caption(files["txt"].decode()) == label
        with Image.open(io.BytesIO(files["png"])) as picture:
            assert read_pictures([pixels_to_latent(np.asarray(picture))])[0].label == label


def test_no_picture_is_made_twice_and_none_of_the_labels_is_frequent(made: Path) -> None:
    samples = samples_of(*made.glob("pairs-*.tar"))
    assert len({files["png"] for files in samples}) == len(samples)
    assert max(Counter(files["txt"] for files in samples).values()) < 8


def test_without_pictures_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--documents: 0 must lie in \[1, inf\)"):
        run_main(program, tmp_path / "made", "--documents", "0")
