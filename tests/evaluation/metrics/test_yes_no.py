from __future__ import annotations

import math
import random

import pytest

from oneflow_dist.evaluation.metrics.yes_no import measure_yes_no, read_yes_no
from tests.messages import names, refused

# answer, ours, whether POPE's rule takes it for a yes
ANSWERS = [
    ("yes", True, True),
    ("Yes, there is a dog.", True, True),
    ("Yes. There is no cat.", True, True),
    ("no", False, False),
    ("No, there is not.", False, False),
    ("There is not a dog", False, False),
    ("I see no dog, yes", False, False),
    ("A dog. No", None, True),
    ("NO", None, True),
    ("No!", None, True),
    ("nothing", None, True),
    ("eyes", None, True),
    ("", None, True),
]


@pytest.mark.parametrize(("text", "ours", "popes"), ANSWERS)
def test_answers_are_read_by_the_rule(text: str, ours: bool | None, popes: bool) -> None:
    assert read_yes_no(text) is ours
    assert (read_yes_no(text) is not False) == popes


def confusion(said: list[bool], truth: list[bool]) -> dict[str, float]:
    """The figures from a table of four counts, as the paper has them."""
    pairs = list(zip(said, truth, strict=True))
    tp, fp, tn, fn = (pairs.count(kind) for kind in [(True, True), (True, False), (False, False), (False, True)])
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (tp + fp) / len(pairs),
    }


def test_figures_are_those_of_the_table_of_four_counts() -> None:
    rng = random.Random(0)
    truth = [rng.random() < 0.5 for _ in range(200)]
    said = [rng.random() < (0.8 if true else 0.3) for true in truth]
    measures = measure_yes_no(said, truth)
    assert {name: measure.value for name, measure in measures.items()} == pytest.approx(confusion(said, truth))
    for measure in measures.values():
        low, high = measure.interval()
        assert low < measure.value < high


def test_an_answer_that_says_neither_is_wrong_and_no_yes() -> None:
    measures = measure_yes_no([None, None, True, False], [True, False, True, False])
    values = {name: measure.value for name, measure in measures.items()}
    assert values == pytest.approx({"accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 0.25})


def test_nothing_over_nothing_is_nothing() -> None:
    measures = measure_yes_no([False, False], [False, False])
    assert [measures[name].value for name in ("accuracy", "precision", "recall", "f1")] == [1.0, 0.0, 0.0, 0.0]
    assert not any(math.isnan(end) for measure in measures.values() for end in measure.interval())


def test_answers_without_their_truths_are_refused() -> None:
    assert names(refused(measure_yes_no, [True, None], [True]), "yes_no", 2, 1)
    assert names(refused(measure_yes_no, [], []), "yes_no", 0, 0)
