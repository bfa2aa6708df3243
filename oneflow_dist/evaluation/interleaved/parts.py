"""The parts of the benchmark, each scored from its folder and a folder of answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.evaluation.answers import Answer, read_answers, read_png
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.concurrency import find_firsts, measure_concurrency, measure_firsts
from oneflow_dist.evaluation.interleaved.documents import measure_documents, read_document
from oneflow_dist.evaluation.interleaved.figures import measure_ranks, rank_of
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.scenes import COUNTING, STORIES

GRAMMARS = {"counting": COUNTING, "stories": STORIES}
PARTS = (*GRAMMARS, "figures")


def score_part(part: str, folder: Path, answers: Path) -> dict[str, Any]:
    """Figures with their intervals, and how many documents they are of, and of how many items.

    Raises:
        ValueError: an answer is of no item or there twice, or a file is missing or damaged.
    """
    items = read_items(folder / "items.jsonl")
    found = read_answers(answers)
    if unknown := [answer.key for answer in found if answer.key not in items]:
        raise ValueError(f"{answers}: an answer to {unknown[0]}, which {folder} does not ask; compare versions")
    if again := [name for name, times in Counter((a.key, a.number) for a in found).items() if times > 1]:
        raise ValueError(f"{answers}: answer {again[0][1]} to {again[0][0]} is there twice; leave one of them")
    fields = [items[answer.key] for answer in found]
    if part == "figures":
        # One item's at a time: all of them are more files than a process may open.
        measures = score_figures(([read_png(folder / name) for name in own["pictures"]] for own in fields), found)
    else:
        measures = score_documents(part, fields, found, Judge.of(folder / "labelled"))
    asked = {"documents": len(found), "items": len({answer.key for answer in found}), "items_asked": len(items)}
    return {**asked, **{name: describe(measure) for name, measure in measures.items()}}


def read_items(path: Path) -> dict[str, dict[str, Any]]:
    """The items of a part by their keys.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return {item["key"]: item for item in map(json.loads, file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no items ({error}); name the benchmark's folder, or copy it again") from error


def score_documents(
    part: str, fields: Sequence[Mapping[str, Any]], answers: Sequence[Answer], judge: Judge
) -> dict[str, Measure]:
    """Counting documents or stories: what they are, and how they came about as far as the answers tell."""
    grammar = GRAMMARS[part]
    readings = [read_document(answer, grammar, judge) for answer in answers]
    measures = measure_documents(fields, readings, grammar)
    if any(part.born for answer in answers for part in answer.parts):
        measures |= measure_concurrency(answers, readings)
        firsts = [find_firsts(*pair, judge) for pair in zip(answers, readings, strict=True)]
        measures |= measure_firsts(firsts)
    return measures


def score_figures(choices: Iterable[Sequence[Image.Image]], answers: Sequence[Answer]) -> dict[str, Measure]:
    """Painted figures; the first choice is the true one. Where none was painted it comes last."""
    ranks, numbers = [], []
    for answer, own in zip(answers, choices, strict=True):
        made = answer.pictures()
        ranks.append(rank_of(made[0], own) if made else len(own))
        numbers.append(len(own))
    return measure_ranks(ranks, min(numbers))


def describe(measure: Measure) -> dict[str, float]:
    """A figure and its interval, for a report."""
    low, high = measure.interval()
    return {"value": measure.value, "low": low, "high": high}
