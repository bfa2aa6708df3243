"""A judge that learns which words go with a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.metrics.alignment import Aligner, measure_alignment
from oneflow_dist.evaluation.metrics.learnt import Learnt, Words, learn_words, load_judge, save_judge, split_words
from tests.messages import naming

COLOURS = {"red": (200, 30, 20), "green": (20, 190, 40), "blue": (10, 40, 210), "grey": (128, 128, 128)}
THINGS = ("kite", "boat")


def make(number: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Coloured fields, noisy; a boat is dark in its lower half."""
    rng = np.random.default_rng(seed)
    pictures, captions = [], []
    for _ in range(number):
        colour, thing = str(rng.choice(list(COLOURS))), str(rng.choice(THINGS))
        pixels = np.array(COLOURS[colour]) * np.ones((8, 8, 1)) + rng.normal(0.0, 12.0, (8, 8, 3))
        pixels[4:] *= 0.3 if thing == "boat" else 1.0
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        captions.append(f"A {colour.upper()} {thing}, number {rng.integers(1000)}")
    return pictures, captions


def extract(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(p, dtype=np.float32).reshape(2, 4 * 8, 3).mean(1).ravel() / 255.0 for p in pictures])


@pytest.fixture(scope="module")
def judge() -> Learnt:
    pictures, captions = make(400, 0)
    words, map_, offset = learn_words(extract(pictures), captions)
    return Learnt(sha256="0", words=words, map=map_, offset=offset, _extract=extract)


def test_it_finds_the_captions_of_pictures_it_has_not_seen(judge: Learnt) -> None:
    assert isinstance(judge, Aligner)
    pictures, _ = make(64, 1)
    captions = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    _, written = make(64, 1)
    right = [next(c for c in captions if set(c.split()) <= set(split_words(text))) for text in written]
    found = measure_alignment(pictures, right, judge)
    assert found["recall_1"].value > 0.9
    wrong = measure_alignment(pictures, right[1:] + right[:1], judge)
    assert wrong["recall_1"].value < 0.5


def test_rare_words_weigh_more_and_those_of_few_captions_are_unknown() -> None:
    words = Words.of(["red kite"] * 5 + ["red boat"] * 20 + ["red whale"] * 4)
    assert words.words == ("boat", "kite", "red")
    weight = dict(zip(words.words, words.weights, strict=True))
    assert weight["kite"] > weight["boat"] > weight["red"] == 0.0
    assert np.linalg.norm(words.read(["a whale"])) == 0.0
    assert np.linalg.norm(words.read(["kite and boat"])) == pytest.approx(1.0)


def test_it_comes_back_as_it_was_saved(judge: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_judge(tmp_path / "judge", judge.words, judge.map, judge.offset, "ours")
    monkeypatch.setattr("oneflow_dist.evaluation.metrics.features.load_extractor", lambda *_: extract)
    back = load_judge(tmp_path / "judge", "cpu")
    pictures, captions = make(5, 2)
    assert np.array_equal(back.compare(pictures, captions), judge.compare(pictures, captions))
    (tmp_path / "judge/judge.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=naming(tmp_path / "judge", "learn it again")):
        load_judge(tmp_path / "judge", "cpu")


@pytest.mark.parametrize(("captions", "says"), [(["red"] * 49, 49), (["x1"] * 60, "no word")])
def test_too_little_to_learn_from_is_told(captions: list[str], says: object) -> None:
    with pytest.raises(ValueError, match=naming(says)):
        learn_words(np.zeros((len(captions), 3)), captions)
