from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.evaluation.answers import Answer
from oneflow_dist.evaluation.items import Item, Picture
from oneflow_dist.evaluation.originality import read_training, score_originality
from oneflow_dist.evaluation.scoring import Scored, match
from oneflow_dist.evaluation.suite import SuiteConfig, TaskConfig
from tools.digits.grammar import load_split
from tools.shards import encode_png

Make = Callable[..., Answer]


def scored_of(items: Sequence[Item], answers: Sequence[Answer], **more: Any) -> Scored:
    task, scored = TaskConfig(source="items", path="x", scores=("captions",), **more), Scored()
    score_originality(match("t", task, SuiteConfig(), items, answers), scored)
    return scored


def test_texts_are_compared_with_their_references_in_length(make_answer: Make) -> None:
    items = [Item(key=key, fields={"references": ["one two three"]}) for key in "ab"]
    measures = scored_of(items, [make_answer("a", "one two"), make_answer("b", "one two three four")]).measures
    assert measures["words"].value == 3.0
    assert measures["words_distance"].value == 1.0
    assert measures["distinct_1"].value == 4 / 6


def test_copies_of_training_are_found(make_answer: Make, digits: Path) -> None:
    pattern = f"{digits}/single-train-*.tar"
    training = read_training(pattern)
    images = load_split("train")[0]
    held_out = load_split("heldout")[0]
    items = [
        Item(key=key, fields={}, pictures=(Picture(key, lambda image=image: encode_png(image)),))
        for key, image in zip("abcd", held_out, strict=False)
    ]
    copied = " ".join(training.texts[0])
    answers = [make_answer(key, copied, images[n]) for n, key in enumerate("ab")]
    answers += [make_answer(key, "nobody ever wrote this", held_out[n]) for n, key in enumerate("cd", start=2)]
    measures = scored_of(items, answers, trained_on=pattern).measures
    assert measures["copied_texts"].value == 0.5
    assert measures["copied_pictures"].value >= 0.5  # two are there, at distance 0; the others are held-out ones
    assert measures["longest_copy"].value >= 0.5 * len(copied.split())
    assert 0.0 < measures["copied_4_grams"].value < 1.0


def test_training_is_read_with_all_its_texts_and_pictures(digits: Path) -> None:
    training = read_training(f"{digits}/count-train-*.tar")
    assert len(training.texts) == 256
    assert training.pictures.shape[0] == sum(len(text) for text in training.texts)  # a picture for each word
    assert np.isfinite(training.pictures).all()
    assert training.pictures.max() <= 1.0
