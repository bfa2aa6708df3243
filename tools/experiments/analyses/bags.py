"""What averaged bags are worth: noise, and the steps and seconds after which they are as good as sampled ones."""

from __future__ import annotations

import numpy as np

from tools.experiments.report import make_table
from tools.experiments.results import Point, Results

TEXT = (
    "Steps: of averaged bags until the held-out loss is that of sampled ones after all steps, over all steps; between "
    "the steps that were measured, linear. Seconds: that times what a step takes, over a step with sampled bags."
)


def write_section(results: Results) -> str:
    """A row for each world."""
    worlds = list(dict.fromkeys(arm.partition(", ")[0] for arm in results.experiment.arm if ", " in arm))
    rows = [[world, *describe(results, world)] for world in worlds if has(results, world)]
    head = ["", "noise, averaged over sampled", "steps to be as good", "seconds to be as good"]
    return "\n\n".join(["## What it is worth", TEXT, make_table(head, rows)])


def has(results: Results, world: str) -> bool:
    """Whether it was trained: not where its data are missing."""
    return any(point.series == f"{world}, averaged" for point in results.estimates["text"])


def describe(results: Results, world: str) -> list[str]:
    """Noise, steps and seconds, as shares."""
    noise = [
        results.estimates["noise"][Point(f"{world}, sampled, {bags}", None)].mean for bags in ("sampled", "averaged")
    ]
    share = steps_to_reach(*(curve(results, f"{world}, {bags}") for bags in ("averaged", "sampled")))
    paces = [
        results.estimates["step_seconds"].get(Point(f"pace, {world}, {bags}", None)) for bags in ("sampled", "averaged")
    ]
    seconds = "" if share is None or None in paces else f"{share * paces[1].mean / paces[0].mean:.2f}"  # type: ignore[union-attr]
    return [f"{noise[1] / noise[0]:.2f}", "more than 1" if share is None else f"{share:.2f}", seconds]


def curve(results: Results, series: str) -> dict[float, float]:
    """The mean held-out loss by step."""
    points = results.estimates["text"].items()
    return {point.x: own.mean for point, own in points if point.series == series and point.x is not None}


def steps_to_reach(ours: dict[float, float], theirs: dict[float, float]) -> float | None:
    """The step at which ours first is as low as the last of theirs, as a share of that step; None if it never is."""
    last = max(theirs)
    steps, losses = np.array(sorted(ours)), np.array([ours[step] for step in sorted(ours)])
    reached = np.flatnonzero(losses <= theirs[last])
    if len(reached) == 0:
        return None
    after = int(reached[0])
    if after == 0:
        return float(steps[0] / last)
    before = after - 1
    part = (losses[before] - theirs[last]) / (losses[before] - losses[after])
    return float((steps[before] + part * (steps[after] - steps[before])) / last)
