from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation import scoring
from oneflow_dist.evaluation.answers import Answer
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.items import Item, Picture
from oneflow_dist.evaluation.metrics import features
from oneflow_dist.evaluation.scoring import Scored, find_label, match, read_objects, score
from oneflow_dist.evaluation.suite import SuiteConfig, TaskConfig
from tests.messages import names, refused
from tools.digits.grammar import WORDS, load_split
from tools.shards import encode_png

IMAGES, LABELS = load_split("train")
Make = Callable[..., Answer]


def task_of(*scores: str, **more: Any) -> TaskConfig:
    return TaskConfig(source="items", path="x", scores=scores, **more)


def item_of(key: str, *images: np.ndarray, **fields: Any) -> Item:
    pictures = tuple(Picture(f"{key}-{n}", lambda image=image: encode_png(image)) for n, image in enumerate(images))
    return Item(key=key, fields=fields, pictures=pictures)


def scored_of(task: TaskConfig, items: Sequence[Item], answers: Sequence[Answer]) -> Scored:
    return score(match("t", task, SuiteConfig(), items, answers))


def values_of(task: TaskConfig, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, float]:
    return {name: measure.value for name, measure in scored_of(task, items, answers).measures.items()}


def test_answers_without_item_and_items_without_answer_are_refused(make_answer: Make) -> None:
    items = [item_of("a", references=["x"]), item_of("b", references=["y"])]
    one, two = make_answer("a", "x"), make_answer("b", "y")
    task = task_of("exact")
    assert values_of(task, items, [two, one])["accuracy"] == 1.0  # whatever their order
    assert names(refused(scored_of, task, items, [one]), "task.t", "item b")
    assert names(refused(scored_of, task, items, [one, two, make_answer("c", "z")]), "task.t", "item c")
    assert names(refused(scored_of, replace(task, repeats=2), items, [one, two]), "task.t", "item a")


def test_equal_answers_are_right_whatever_their_case_and_marks(make_answer: Make) -> None:
    items = [item_of(key, references=["Two."], choices=["one", "two"]) for key in "abcd"]
    answers = [make_answer(key, text) for key, text in zip("abcd", ("two", "Two!", "one", "too"), strict=True)]
    scored = scored_of(task_of("exact"), items, answers)
    assert scored.measures["accuracy"].value == 0.5
    assert any("0.500" in note for note in scored.notes)


def test_a_truth_that_is_missing_is_named(make_answer: Make) -> None:
    message = refused(
        scored_of, task_of("exact", truth="label"), [item_of("a", references=["x"])], [make_answer("a", "x")]
    )
    assert names(message, "task.t", "item a", "label")


def test_yes_and_no_are_counted_as_popes_program_does(make_answer: Make) -> None:
    items = [item_of(key, references=[truth]) for key, truth in zip("abcd", ("yes", "yes", "no", "no"), strict=True)]
    said = ("Yes, there is.", "No.", "a cat", "no")
    scored = scored_of(task_of("yes_no"), items, [make_answer(k, text) for k, text in zip("abcd", said, strict=True)])
    found = {name: measure.value for name, measure in scored.measures.items()}
    assert (found["accuracy"], found["precision"], found["recall"], found["yes_ratio"]) == (0.5, 0.5, 0.5, 0.5)
    assert any("1 of 4" in note for note in scored.notes)
    message = refused(scored_of, task_of("yes_no"), [item_of("a", references=["perhaps"])], [make_answer("a", "yes")])
    assert names(message, "task.t", "references", "item a")


def test_answers_of_people_make_a_vqa_accuracy(make_answer: Make) -> None:
    items = [item_of("a", references=["two"] * 3 + ["three"] * 7), item_of("b", references=["cat"] * 10)]
    found = values_of(task_of("vqa"), items, [make_answer("a", "2"), make_answer("b", "dog")])
    assert found["vqa_accuracy"] == pytest.approx(0.45)  # leaving each out: 3 times 2/3, 7 times 1


def test_objects_that_are_not_in_the_picture_are_found(make_answer: Make, tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"objects": {"7": ["dog"]}, "synonyms": {"dog": "dog", "cat": "cat"}}))
    items = [item_of("a", image_id=7, references=["a dog"])]
    task = task_of("chair", objects=str(path))
    assert values_of(task, items, [make_answer("a", "a dog and a cat")])["chair_i"] == 0.5
    message = refused(scored_of, task, [item_of("a", image_id=8, references=["x"])], [make_answer("a", "a dog")])
    assert names(message, path, 8)
    path.write_text("[]")
    assert names(refused(read_objects, path), path)


def test_pictures_and_texts_are_compared_with_the_label_that_is_named(make_answer: Make, counting: Path) -> None:
    own = {int(label): IMAGES[index] for index, label in enumerate(LABELS)}
    task = task_of("labels", labelled=str(counting / "labelled"))
    asked = [item_of("a", caption="a handwritten three"), item_of("b", caption="the digit two")]
    found = values_of(task, asked, [make_answer("a", own[3]), make_answer("b", own[7])])
    assert (found["one_picture"], found["agreement"]) == (1.0, 0.5)
    told = [item_of("a", own[3], caption="a handwritten three"), item_of("b", own[2], caption="the digit two")]
    found = values_of(task, told, [make_answer("a", "this is a three"), make_answer("b", "this is a")])
    assert (found["valid_text"], found["agreement"]) == (0.5, 0.5)
    free = [item_of(key) for key in "abc"]
    answers = [
        make_answer("a", "this is a four", own[4]),
        make_answer("b", own[4]),
        make_answer("c", "one two", own[1]),
    ]
    found = values_of(task, free, answers)
    assert (found["valid_text"], found["one_picture"]) == (pytest.approx(1 / 3), 1.0)
    assert found["agreement"] == pytest.approx(1 / 3)


def test_a_label_is_the_only_one_of_a_text_as_a_whole_word(counting: Path) -> None:
    judge = Judge.of(counting / "labelled")
    assert find_label("this is a seven", judge) == "seven"
    assert [find_label(text, judge) for text in ("seventeen", "one or two", "")] == [None] * 3
    assert set(judge.labels) == set(WORDS)


def test_distances_are_named_after_the_network_that_sees(make_answer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = features.Extractor(
        name="mean", sha256="0" * 64, size=8, dim=1, is_official=False,
        _rows=lambda pictures: np.array([[np.asarray(p).mean()] for p in pictures], dtype=np.float32),
    )  # fmt: skip
    monkeypatch.setattr(features, "load_extractor", lambda *_: extractor)
    items = [item_of(str(n), IMAGES[n]) for n in range(6)]
    answers = [make_answer(str(n), IMAGES[n]) for n in range(6)]
    scored = scored_of(task_of("distance"), items, answers)
    assert scored.measures["Frechet distance (mean)"].value == pytest.approx(0.0, abs=1e-4)
    assert "KID (mean)" in scored.measures
    assert any("6 made and 6 real" in note for note in scored.notes)
    message = refused(scored_of, task_of("distance"), items[:1], answers[:1])
    assert names(message, "task.t", 1, 1)


def test_pictures_are_aligned_with_captions_and_captions_with_pictures(
    make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[str]]] = []

    def compare(pictures: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        seen.append((len(pictures), [*captions]))
        return np.eye(len(pictures), len(captions))

    figures = {"figures": lambda own: {"likeness": own}, "compare": compare}
    monkeypatch.setattr(scoring, "aligner_of", lambda *_: SimpleNamespace(name="eye", sha256="0", **figures))
    items = [item_of(key, IMAGES[n], caption=f"caption {key}") for n, key in enumerate("ab")]
    found = values_of(task_of("alignment"), items, [make_answer(key, IMAGES[5]) for key in "ab"])
    assert (found["likeness"], found["recall_1"]) == (1.0, 1.0)
    scored_of(task_of("alignment"), items, [make_answer(key, f"said {key}") for key in "ab"])
    assert seen == [(2, ["caption a", "caption b"]), (2, ["said a", "said b"])]


def test_documents_without_room_are_told(make_answer: Make) -> None:
    answers = [make_answer("a", "x", hit_cap=True), make_answer("b", "y")]
    items = [item_of(key, references=["x"]) for key in "ab"]
    assert any("1 of 2" in note and "max_rows" in note for note in scored_of(task_of("exact"), items, answers).notes)
