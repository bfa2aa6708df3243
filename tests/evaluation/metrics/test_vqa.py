from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_dist.evaluation.metrics.vqa import measure_exact, measure_vqa, normalize_answer
from tests.messages import names, refused

# What VQAEval of salesforce-lavis 1.0.2, processPunctuation and processDigitArticle, makes of each; lmms-eval 0.7.3 the
# same.
CASES = json.loads(Path(__file__).with_name("vqa_cases.json").read_text())


def test_answers_are_normalized_as_officially() -> None:
    assert len(CASES) > 300
    assert {answer: normalize_answer(answer) for answer in CASES} == CASES


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two.\n", "2"),
        ("the red-blue cat", "red blue cat"),
        ("red - blue", "red blue"),
        ("1,000 a-b", "1000 ab"),
        ("1.5 ft.", "1.5 ft"),
        ("dont", "don't"),
        ("None", "0"),
    ],
)
def test_spelling_is_out_of_the_way(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(("same", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_people_are_left_out_one_by_one(same: int, expected: float) -> None:
    # of two who agree: without one of them 1/3, without another of the ten 2/3: (2 / 3 + 8 * 2 / 3) / 10
    people = ["yes"] * same + ["no"] * (10 - same)
    assert measure_vqa(["Yes."], [people]).value == pytest.approx(expected)


def test_what_people_said_is_normalized_too() -> None:
    assert measure_vqa(["two"], [["2", "two", "Two", "the two"]]).value == 1.0


def test_exact_is_the_share_of_equal_answers() -> None:
    measure = measure_exact(["Two", "a cat", "dog"], ["2", "cat", "cat"])
    assert measure.value == pytest.approx(2 / 3)
    low, high = measure.interval()
    assert low <= measure.value <= high


@pytest.mark.parametrize("measure", [measure_vqa, measure_exact])
def test_lists_that_do_not_belong_together_are_refused(measure: object) -> None:
    assert callable(measure)
    assert names(refused(measure, ["yes", "no"], [["yes", "no"]] if measure is measure_vqa else ["yes"]), "vqa", 2, 1)
    assert names(refused(measure, [], []), "vqa", 0, 0)


def test_too_few_people_are_refused() -> None:
    assert names(refused(measure_vqa, ["yes", "no"], [["yes", "no"], ["yes"]]), "vqa", 1, "yes")
