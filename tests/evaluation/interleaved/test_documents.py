from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.evaluation.interleaved.documents import measure_documents, read_document
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.scenes import COUNTING, STORIES
from tests.evaluation.interleaved.made_up import Said, Shown, write_document

WHOLES = ("number", "place", "order", "text", "document")
PARTS = ("agreement", "agreement_count", "agreement_colour", "agreement_who")
FIELDS = {"scenes": ["one red fish", "two blue mouse"]}
A, B = Said("first one red fish"), Said("then two blue mice")
FISH, MICE = Shown("one red fish"), Shown("two blue mouse")
AGAIN = Said("again one red fish")
Document = tuple[Said | Shown, ...]

# number, place, order, text, document; agreement in all, count, colour, who
CASES: dict[str, tuple[Document, tuple[float, ...], tuple[float, ...]]] = {
    "right": ((A, FISH, B, MICE), (1, 1, 1, 1, 1), (1, 1, 1, 1)),
    "an image is missing": ((A, FISH, B), (0, 0, 0, 1, 0), (1, 1, 1, 1)),
    "an image too many": ((A, FISH, B, MICE, MICE), (0, 0, 0, 1, 0), (2 / 3, 2 / 3, 2 / 3, 2 / 3)),
    "swapped": ((A, MICE, B, FISH), (1, 1, 0, 1, 0), (0, 0, 0, 0)),
    "a wrong colour": ((A, FISH, B, Shown("two green mouse")), (1, 1, 0, 1, 0), (0.5, 1, 0.5, 1)),
    "a wrong number": ((A, FISH, B, Shown("three blue mouse")), (1, 1, 0, 1, 0), (0.5, 0.5, 1, 1)),
    "images before their texts": ((FISH, A, MICE, B), (1, 0, 1, 1, 0), (0, 0, 0, 0)),
    "a text of no scene": ((Said("first one red fishes"), FISH, B, MICE), (1, 1, 1, 0, 0), (0.5, 0.5, 0.5, 0.5)),
    "another story": ((B, MICE, A, FISH), (1, 1, 0, 0, 0), (1, 1, 1, 1)),
    "half of the story": ((A, FISH), (1, 1, 0, 0, 0), (1, 1, 1, 1)),
    "images alone": ((FISH, MICE), (0, 0, 1, 0, 0), (0, 0, 0, 0)),
    "texts alone": ((A, B), (0, 0, 0, 1, 0), ()),
    "empty": ((), (0, 0, 0, 0, 0), ()),
}


def figures(folder: Path, judge: Judge, *documents: Document) -> dict[str, float]:
    answers = [write_document(folder, *made, key=f"{number}") for number, made in enumerate(documents)]
    readings = [read_document(answer, STORIES, judge) for answer in answers]
    measures = measure_documents([FIELDS] * len(answers), readings, STORIES)
    return {name: measure.value for name, measure in measures.items()}


@pytest.mark.parametrize(("made", "wholes", "parts"), CASES.values(), ids=CASES)
def test_figures_are_what_one_counts(
    made: Document, wholes: tuple[float, ...], parts: tuple[float, ...], judge: Judge, tmp_path: Path
) -> None:
    counted = {**dict(zip(WHOLES, wholes, strict=True)), **dict(zip(PARTS, parts, strict=False))}
    assert figures(tmp_path, judge, made) == pytest.approx(counted)


def test_documents_count_alike_and_images_count_alike(judge: Judge, tmp_path: Path) -> None:
    found = figures(tmp_path, judge, *(made for made, _, _ in CASES.values()))
    images = [sum(isinstance(one, Shown) for one in made) for made, _, _ in CASES.values()]
    for place, name in enumerate(WHOLES):
        assert found[name] == pytest.approx(sum(wholes[place] for _, wholes, _ in CASES.values()) / len(CASES))
    right = sum(parts[0] * own for (_, _, parts), own in zip(CASES.values(), images, strict=True) if parts)
    assert found["agreement"] == pytest.approx(right / sum(images))


@pytest.mark.parametrize(("last", "matching", "agreement"), [(FISH, 1.0, 1.0), (Shown("one blue fish"), 0.0, 2 / 3)])
def test_images_of_the_same_text_are_to_match(
    last: Shown, matching: float, agreement: float, judge: Judge, tmp_path: Path
) -> None:
    found = figures(tmp_path, judge, (A, FISH, B, MICE, AGAIN, last))
    assert (found["matching"], found["agreement"]) == pytest.approx((matching, agreement))


def test_images_that_are_wrong_in_the_same_way_match(judge: Judge, tmp_path: Path) -> None:
    blue = Shown("one blue fish")
    found = figures(tmp_path, judge, (A, blue, B, MICE, AGAIN, blue))
    assert (found["matching"], found["agreement"]) == pytest.approx((1.0, 1 / 3))


def test_without_two_texts_that_say_the_same_nothing_is_to_match(judge: Judge, tmp_path: Path) -> None:
    assert "matching" not in figures(tmp_path, judge, (A, FISH, B, MICE, FISH, FISH))


def test_counting_has_no_attributes(judge: Judge, tmp_path: Path) -> None:
    answer = write_document(tmp_path, Said("three"), FISH, Said("four"))
    measures = measure_documents([{"longest": 5}], [read_document(answer, COUNTING, judge_of_digits())], COUNTING)
    expected = {"number": 0.0, "place": 0.0, "order": 1.0, "text": 1.0, "document": 0.0, "agreement": 1.0}
    assert {name: measure.value for name, measure in measures.items()} == expected


def judge_of_digits() -> Judge:
    """One to whom everything is a three."""
    return Judge(("three",), np.zeros((1, 3), dtype=np.float32), (1, 1))
