from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import run_main
from tests.precompute.making import contents
from tests.tars import samples_of
from tools.digits.grammar import WORDS, load_split
from tools.styles import make as program
from tools.styles.grammar import STATEMENTS, Style, draw_picture, judge, read_caption


def pixels_of(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture).tobytes()


def test_a_folder_holds_shards_of_both_splits_the_vocabulary_and_a_seven(tmp_path: Path) -> None:
    run_main(program, tmp_path / "made", "--documents", "96")
    assert sorted(contents(tmp_path / "made")) == [
        "seven.png", "styles-heldout-000000.tar", "styles-train-000000.tar", "words.tiktoken"
    ]  # fmt: skip
    tokenizer = load_tokenizer(str(tmp_path / "made/words.tiktoken"))
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in (*STATEMENTS, "digit", "on", "with", "a", "edge"))


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(styled: Path, tmp_path: Path) -> None:
    run_main(program, tmp_path / "again", "--documents", "96")
    run_main(program, tmp_path / "other", "--documents", "96", "--seed", "1")
    made, again, other = (contents(folder) for folder in (styled, tmp_path / "again", tmp_path / "other"))
    assert again == {name: made[name] for name in again}
    assert {name for name in other if other[name] == made[name]} == {"seven.png", "words.tiktoken"}


@pytest.mark.parametrize(("split", "number"), [("train", 96), ("heldout", 12)])
def test_captions_tell_what_pictures_of_their_split_show(split: str, number: int, styled: Path) -> None:
    samples = samples_of(*styled.glob(f"styles-{split}-*.tar"))
    assert len(samples) == number
    for files in samples:
        style, caption = Style(**json.loads(files["json"])), files["txt"].decode()
        images, labels = load_split(split)
        allowed = {draw_picture(image, style).tobytes() for image in images[labels == WORDS.index(style.digit)]}
        assert pixels_of(files["png"]) in allowed
        told = read_caption(caption)
        assert told is not None
        assert judge(caption, style) == (sum(word != "" for word in told), 0)


def test_without_pictures_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--documents: 0 must lie in \[1, inf\)"):
        run_main(program, tmp_path / "made", "--documents", "0")
