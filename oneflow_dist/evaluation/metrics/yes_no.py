"""POPE: are questions whether something is in a picture answered rightly, and is yes said too often?"""

# Shapes: n items.

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from oneflow_dist.evaluation.bootstrap import Measure

NO = frozenset({"No", "no", "not"})


def read_yes_no(text: str) -> bool | None:
    """Whether an answer in free words is a yes or a no; None if it is neither.

    POPE's own rule tells when it is a no: up to the first full stop, with commas away, one of the words between blanks
    is No, no or not. All else counts as a yes there, the empty answer too. Here a yes must say yes: so that answers of
    a model that has not learned the form are told from those of one that sees things. `read_yes_no(text) is not False`
    is POPE's reading.

    Source: arXiv:2305.10355, evaluate.py of its repository RUCAIBox/POPE.
    """
    sentence = text.split(".")[0]
    if not NO.isdisjoint(sentence.replace(",", "").split(" ")):
        return False
    return True if re.search(r"\byes\b", sentence, re.IGNORECASE) else None


def measure_yes_no(said: Sequence[bool | None], truth: Sequence[bool]) -> dict[str, Measure]:
    """`accuracy`, `precision`, `recall` and `f1` of yes, and `yes_ratio`, the share of yes among the answers.

    None is wrong for accuracy, and for the others no yes. Given POPE's reading, which knows no None, these are POPE's
    figures. A quotient of nothing is 0, where its script fails.

    Raises:
        ValueError: no answer, or not as many as truths.

    Source: arXiv:2305.10355.
    """
    if len(said) != len(truth) or len(said) == 0:
        raise ValueError(f"yes_no: {len(said)} answers to {len(truth)} questions; give one to each, of one or more")
    is_yes = [bool(answer) for answer in said]
    rows = np.array([(yes and true, yes, true) for yes, true in zip(is_yes, truth, strict=True)], dtype=np.float64)
    return {
        "accuracy": Measure.mean_of([answer == true for answer, true in zip(said, truth, strict=True)]),
        "precision": Measure(rows=rows, combine=_precision),
        "recall": Measure(rows=rows, combine=_recall),
        "f1": Measure(rows=rows, combine=_f1),
        "yes_ratio": Measure.mean_of(is_yes),
    }


def _precision(rows: Float64[np.ndarray, "n 3"]) -> float:
    right, said, _ = rows.sum(0)
    return float(right / max(said, 1.0))


def _recall(rows: Float64[np.ndarray, "n 3"]) -> float:
    right, _, true = rows.sum(0)
    return float(right / max(true, 1.0))


def _f1(rows: Float64[np.ndarray, "n 3"]) -> float:
    right, said, true = rows.sum(0)
    return float(2.0 * right / max(said + true, 1.0))
