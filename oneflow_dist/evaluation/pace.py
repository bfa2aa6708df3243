"""Seconds until something can be read or seen, of documents that were written alone; no two machines have the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneflow_dist.evaluation.answers import Answer, read_answers
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.concurrency import find_firsts
from oneflow_dist.evaluation.interleaved.documents import read_document
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.parts import GRAMMARS, describe
from oneflow_dist.evaluation.report import ANSWERS
from oneflow_dist.evaluation.suite import Suite, TaskConfig
from oneflow_dist.files import write_whole

PACE = "pace.json"


def measure_suite(suite: Suite, folder: Path) -> dict[str, dict[str, Any]]:
    """Of each task whose documents are written alone its seconds, which are also written into pace.json."""
    found = {}
    for name, task in suite.task.items():
        if task.group == 1 and set(task.scores) & GRAMMARS.keys():
            own = folder / ANSWERS / name
            measures = measure_pace(task, own, read_answers(own))
            found[name] = {key: describe(measure) for key, measure in measures.items()}
    if found:
        write_whole(folder / PACE, (json.dumps(found, indent=2) + "\n").encode())
    return found


def measure_pace(task: TaskConfig, folder: Path, answers: Sequence[Answer]) -> dict[str, Measure]:
    """Mean seconds until the first sentence, the first image that is recognised, and the end.

    Args:
        folder: of the answers, a group each, with the seconds of its steps beside it.
    """
    (part,) = set(task.scores) & GRAMMARS.keys()
    judge = Judge.of(Path(task.labelled))
    rows: dict[str, list[float]] = {"seconds_to_sentence": [], "seconds_to_image": [], "seconds": []}
    for answer, path in zip(answers, sorted(folder.glob("*.seconds.json")), strict=True):
        seconds = json.loads(path.read_text())
        firsts = find_firsts(answer, read_document(answer, GRAMMARS[part], judge), judge)
        for name, step in zip(rows, (firsts.sentence, firsts.image, len(seconds)), strict=True):
            if step is not None:
                rows[name].append(seconds[step - 1])
    return {name: Measure.mean_of(values) for name, values in rows.items() if values}
