"""The curves of runs as panels, thinned to what a screen can show; as page.js draws them."""

# Shapes: n points.

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from oneflow_dist.reporting.lines import Curve
from oneflow_dist.reporting.runs import Run

MOST_POINTS = 2000  # of a curve
AXIS_POINTS = 500  # at which seconds and tokens are told, the rest lies between
AVERAGE, WEIGHTS = "validation_ema/", "validation/"
BINS = 4  # of time, and of the share of a text that is missing; as oneflow_dist.validation has them, which loads torch
SPEEDS = {
    "tokens_per_second": "tokens per second",
    "tflops_per_second": "TFLOP per second",
    "images_per_second": "images per second",
    "seconds": "seconds of a step",
    "data_wait": "waiting for data",
    "padding": "padding, share of rows",
    "slowest_behind_seconds": "slowest rank, seconds behind the median",
    "slowest_rank": "slowest rank, its number",
}


class Line(NamedTuple):
    """A curve of every run that has it."""

    key: str
    label: str
    kind: str = "step"  # of each step, "exact" if without noise; held out "average" or "weights"; "figure" of a suite


class Panel(NamedTuple):
    """Lines over one another."""

    group: str
    title: str
    lines: tuple[Line, ...]
    is_ordered: bool = False  # one after another, as bins are
    is_marked: bool = False  # with the steps that were left out


def list_panels(runs: Sequence[Run]) -> list[Panel]:
    """All panels of which a run has something; of several runs the parts of the loss have a panel each."""
    keys = list(dict.fromkeys(key for run in runs for key in run.curves if curve_of(run, Line(key, ""))))
    held_out = [key for key in keys if key.startswith((AVERAGE, WEIGHTS)) and key != "validation/seconds"]
    panels = [*_training(keys, len(runs) > 1), *_held_out(held_out)]
    panels += [_alone("Speed", key, title) for key, title in SPEEDS.items() if key in keys]
    shown = {line.key for panel in panels for line in panel.lines}
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        suite, task, figure = [*name.split("/", 2), "", ""][:3]
        panels.append(Panel(f"Evaluation: {suite}, {task}", figure, (Line(name, figure, "figure"),)))
    return panels + [_alone("Other values", key) for key in keys if key not in shown and key not in held_out]


def _alone(group: str, key: str, title: str = "") -> Panel:
    line = Line(key, title or key, "exact" if key in ("lr", "slowest_rank") else "step")
    return Panel(group, title or key, (line,), is_marked=key == "grad_norm")


def _training(keys: Sequence[str], is_apart: bool) -> Iterable[Panel]:
    parts = [key for key in keys if key.startswith("loss/")]
    titles = {"loss": "loss"} | ({key: key for key in parts} if is_apart else {})
    yield from (_alone("Training", key, title) for key, title in titles.items() if key in keys)
    by_part = {"loss of text, by part": "", "velocity loss, by modality": "velocity_"}
    for title, start in by_part.items():
        own = [key for key in parts if key.startswith("loss/velocity_") == bool(start)]
        if own and not is_apart:
            lines = tuple(Line(key, key.removeprefix(f"loss/{start}")) for key in own)
            yield Panel("Training", title if len(lines) > 1 else f"loss/{start}{lines[0].label}", lines)
    titles = {"grad_norm": "gradient norm, before clipping", "lr": "learning rate"}
    yield from (_alone("Training", key, title) for key, title in titles.items() if key in keys)


def _held_out(keys: Sequence[str]) -> Iterable[Panel]:
    """First all sources, then of each its parts and its bins."""
    names = list(dict.fromkeys(key.partition("/")[2] for key in keys))
    sources = [name.removesuffix("/loss") for name in names if name.endswith("/loss")]
    if sources:
        labels = {f"{source}/loss": source for source in sources}
        yield Panel("Held out", "held-out loss, by source", _of_both(keys, labels))
    for source in sources:
        own = [name.removeprefix(f"{source}/") for name in names if name.startswith(f"{source}/")]
        parts = {name: name.replace("_", " of ", 1) for name in own if re.fullmatch(r"text|velocity_[^/]+", name)}
        yield Panel(
            f"Held out: {source}", "by part", _of_both(keys, {f"{source}/{name}": parts[name] for name in parts})
        )
        for part, title in parts.items():
            for bins, by in (("time", "text time" if part == "text" else "time"), ("missing", "missing share")):
                found = sorted(name for name in own if re.fullmatch(rf"{part}/{bins}_\d+", name))
                if found:
                    lines = _of_both(keys, {f"{source}/{name}": name_bin(name) for name in found})
                    yield Panel(f"Held out: {source}", f"{title}, by {by}", lines, is_ordered=True)


def _of_both(keys: Sequence[str], labels: Mapping[str, str]) -> tuple[Line, ...]:
    kinds = {AVERAGE: "average", WEIGHTS: "weights"}.items()
    lines = [Line(prefix + name, label, kind) for prefix, kind in kinds for name, label in labels.items()]
    return tuple(line for line in lines if line.key in keys)


def name_bin(name: str) -> str:
    """What the samples of a bin have in common."""
    part = int(name.rpartition("_")[2])
    if "/missing_" not in name:
        return f"{part / BINS:g} to {(part + 1) / BINS:g}"
    return f"{100 * (part - 1) // BINS} to {100 * part // BINS} % missing" if part else "nothing missing"


def curve_of(run: Run, line: Line) -> Curve | None:
    """The curve of a line; None where the run has none, or none but zeros of a loss that its objective has not."""
    curve = (run.figures if line.kind == "figure" else run.curves).get(line.key)
    return None if curve is None or (line.key.startswith("loss/") and not curve.values.any()) else curve


def as_data(panels: Sequence[Panel], runs: Sequence[Run]) -> dict[str, Any]:
    """All that page.js needs of the curves, for JSON."""
    marks = [
        {"run": number, "step": step, "text": reason}
        for number, run in enumerate(runs)
        for step, reason in run.skipped[-MOST_POINTS:]
    ]
    found = []
    for panel in panels:
        curves = [
            {"run": number, "label": line.label, "kind": line.kind, **thin(curve)}
            for line in panel.lines
            for number, run in enumerate(runs)
            if (curve := curve_of(run, line)) is not None
        ]
        marked = marks if panel.is_marked else []
        flags = {"ordered": panel.is_ordered, "falls": panel.group.startswith(("Training", "Held out"))}
        found.append({"title": panel.title, **flags, "curves": curves, "marks": marked})
    return {"runs": [{"name": run.name, "axis": _axis(run)} for run in runs], "panels": found}


def _axis(run: Run) -> dict[str, Any]:
    """Seconds and tokens until some steps."""
    steps = run.curves["seconds"].steps if "seconds" in run.curves else np.zeros(0, dtype=np.int64)
    places = np.unique(np.linspace(0, max(0, len(steps) - 1), AXIS_POINTS).round().astype(int))[: len(steps)]
    seconds, tokens = run.so_far("seconds"), run.so_far("tokens_per_second", is_speed=True)
    return {
        "s": _differences(steps[places]),
        "seconds": _rounded(seconds[places], 7),
        "tokens": _rounded(tokens[places], 7),
    }


def thin(curve: Curve, most: int = MOST_POINTS) -> dict[str, Any]:
    """A curve for JSON: steps as differences, and of a long one the least and greatest of each stretch, and its mean.

    So no spike is lost, and what is smoothed is smoothed from means of all values.
    """
    steps, values = curve.steps, curve.values
    if len(steps) <= most:
        table: dict[str, Any] = {"s": _differences(steps), "v": _rounded(values)}
        if curve.low is not None and curve.high is not None:
            table |= {"low": _rounded(curve.low), "high": _rounded(curve.high)}
        return table
    edges = np.linspace(0, len(steps), most // 2).round().astype(int)
    stretches = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    extremes = [start + place(values[start:end]) for start, end in stretches for place in (np.argmin, np.argmax)]
    kept, middles = np.unique([0, *extremes, len(steps) - 1]), (edges[:-1] + edges[1:] - 1) // 2
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    thinned = {"s": _differences(steps[kept]), "v": _rounded(values[kept])}
    return {**thinned, "mean_s": _differences(steps[middles]), "mean": _rounded(means)}


def _differences(steps: np.ndarray) -> list[int]:
    """The first, and then how much each is more than the one before: short in JSON."""
    found: list[int] = np.diff(steps, prepend=0).tolist()
    return found


def _rounded(values: Float64[np.ndarray, "n"], digits: int = 5) -> list[float | None]:
    """To so many digits; None where there is no number."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
