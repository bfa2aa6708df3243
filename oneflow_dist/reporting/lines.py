"""metrics.jsonl, evaluation.jsonl and the reports of evaluations, as curves over the steps of a run."""

# Shapes: n points of a curve.

from __future__ import annotations

import json
import math
from array import array
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

METRICS, FIGURES = "metrics.jsonl", "evaluation.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The values of one name, where there are any."""

    steps: Int64[np.ndarray, "n"]
    values: Float64[np.ndarray, "n"]  # finite
    low: Float64[np.ndarray, "n"] | None = None  # of a 95 % interval; NaN where none is known
    high: Float64[np.ndarray, "n"] | None = None


class Lines(NamedTuple):
    """What a file of lines says."""

    curves: dict[str, Curve]
    skipped: list[tuple[int, str]]  # steps that were left out, and why
    last_step: int


def read_lines(path: Path) -> Lines:
    """A file of lines; a last one that is not whole is being written, and left out.

    Raises:
        ValueError: there is none, or another line is damaged.
    """
    columns: dict[str, tuple[array[int], array[float]]] = defaultdict(lambda: (array("q"), array("d")))
    skipped, step = [], 0
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], start=1):
        if not text.endswith(b"\n"):
            break
        try:
            line = json.loads(text)
            step = int(line.pop("step"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: damaged ({text[:40]!r}); remove that line") from error
        if reason := line.pop("skipped", ""):
            skipped.append((step, str(reason)))
        for name, value in line.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                columns[name][0].append(step)
                columns[name][1].append(value)
    if not columns:
        raise ValueError(f"{path}: no line of a run is here; name the folder of one that has begun")
    arrays = {name: (np.array(steps, np.int64), np.array(values)) for name, (steps, values) in columns.items()}
    return Lines({name: Curve(steps=own[0], values=own[1]) for name, own in arrays.items()}, skipped, step)


def read_figures(run: Path) -> dict[str, Curve]:
    """The figures of evaluations by SUITE/TASK/NAME, with their intervals where a report has them.

    Raises:
        ValueError: a line or a report is damaged.
    """
    found: dict[str, dict[int, tuple[float, float, float]]] = defaultdict(dict)
    for name, curve in (read_lines(run / FIGURES).curves if (run / FIGURES).is_file() else {}).items():
        points = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        found[name] = {step: (value, math.nan, math.nan) for step, value in points}
    for path in sorted(run.glob("evaluation/*/step-*/report.json")):
        try:
            report = json.loads(path.read_bytes())
            for task, of_task in report["tasks"].items():
                for name, own in of_task["figures"].items():
                    values = float(own["value"]), float(own["low"]), float(own["high"])
                    if math.isfinite(values[0]):
                        found[f"{path.parts[-3]}/{task}/{name}"][int(report["protocol"]["step"])] = values
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({error!r}); make it again with oneflow score") from error
    tables = {name: np.array([(step, *own[step]) for step in sorted(own)]).T for name, own in found.items()}
    return {
        name: Curve(steps=table[0].astype(np.int64), values=table[1], low=table[2], high=table[3])
        for name, table in tables.items()
    }
