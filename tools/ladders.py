"""Whether the rungs of a ladder are in order, in lines and as a plot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oneflow_dist.extras import require

FAULTS = ("KID", "FID", "Frechet", "chair_i", "chair_s", "words_distance")  # less is better
NEUTRAL = (  # no merit: told beside the others
    *("distinct_", "copied_", "longest_copy", "words", "birth", "early", "beside", "forwards_", "part_", "yes_ratio"),
    *("agreement_early", "agreement_late"),
)
BLIND = "shuffled"  # where nothing is paired it is as good as what was shuffled
COLUMNS = 3


def merit_of(figure: str) -> int:
    """1: more is better, -1: less is better, 0: neither."""
    if figure.startswith(FAULTS):
        return -1
    return 0 if figure.startswith(NEUTRAL) else 1


def faults_of(rungs: list[str], own: Mapping[str, Mapping[str, float]], merit: int) -> list[str]:
    """Pairs of rungs in the wrong order, beyond their intervals.

    Shuffled answers stand beside untrained ones at the foot: they are compared with the best model alone.
    """
    ladder = [rung for rung in rungs if rung in own and rung != BLIND]
    pairs = [*itertools.pairwise(ladder)]
    if BLIND in own:
        pairs.append((BLIND, rungs[-2]))
    wrong = []
    for low, high in pairs:
        below, above = (own[low], own[high]) if merit > 0 else (own[high], own[low])
        if below["low"] > above["high"]:
            wrong.append(f"{low} > {high}" if merit > 0 else f"{low} < {high}")
    return wrong


def apart_of(rungs: list[str], own: Mapping[str, Mapping[str, float]], merit: int) -> list[str]:
    """Pairs of neighbours whose intervals do not overlap and that are in order."""
    ladder = [rung for rung in rungs if rung in own and rung != BLIND]
    found = []
    for low, high in itertools.pairwise(ladder):
        below, above = (own[low], own[high]) if merit > 0 else (own[high], own[low])
        if below["high"] < above["low"]:
            found.append(f"{low} | {high}")
    return found


def as_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each figure that has a better side."""
    rungs = report["rungs"]
    for task, figures in report["tasks"].items():
        yield f"{task}: {', '.join(rungs)}"
        for figure, own in figures.items():
            if (merit := merit_of(figure)) and len(own) > 1:  # of one rung alone, nothing is compared
                values = " ".join(f"{own[rung]['value']:>9.4f}" if rung in own else f"{'':>9}" for rung in rungs)
                wrong = faults_of(rungs, own, merit)
                verdict = f"WRONG: {', '.join(wrong)}" if wrong else f"apart: {len(apart_of(rungs, own, merit))}"
                yield f"  {figure:<36} {values}   {verdict}"


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """A small plot for each figure: rungs from left to right, with their intervals."""
    require(path, "evaluate", "matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rungs = report["rungs"]
    shown = [
        (f"{task}: {figure}", own)
        for task, figures in report["tasks"].items()
        for figure, own in figures.items()
        if merit_of(figure) and len(own) > 1
    ]
    num_rows = -(-len(shown) // COLUMNS)
    figure, axes = pyplot.subplots(num_rows, COLUMNS, figsize=(4.4 * COLUMNS, 2.1 * num_rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (title, own) in zip(axes.flat, shown, strict=False):
        there = [rung for rung in rungs if rung in own]
        values = [own[rung]["value"] for rung in there]
        below = [max(0.0, value - own[rung]["low"]) for value, rung in zip(values, there, strict=True)]
        above = [max(0.0, own[rung]["high"] - value) for value, rung in zip(values, there, strict=True)]
        colours = ["#b0b0bc" if rung in (BLIND, "data") else "#3056d3" for rung in there]
        axis.errorbar(range(len(there)), values, [below, above], fmt="none", ecolor="#8a8a99", capsize=3)
        axis.scatter(range(len(there)), values, c=colours, zorder=3)
        axis.set_xticks(range(len(there)), there, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
