"""Quality of three objectives over FLOPs and seconds: fitted curves, and budgets at which one is as good as another."""

# Shapes: n seeds, B runs.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tools.experiments.drawing import COLOURS, INK, finish
from tools.experiments.parity import Ratio, Scores, compare_flops
from tools.experiments.report import make_table
from tools.experiments.results import Point, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Page

FIGURES = ("told_right", "count_right", "count_agreement", "distance", "velocity", "bits")
SIZES = ("small", "middle", "large")
MARKERS = dict(zip(SIZES, "os^", strict=True))
PARITY = (
    "A ratio is the FLOPs (or seconds) with which the first is as good as the second ever is, over the second's whole "
    "budget: below 1 it needs less. Of each objective the best of all runs up to a budget counts, of any size. ≤: its "
    "smallest budget is already enough; >: its largest is not. In brackets 90 % of what seeds and documents drawn anew "
    "would give. Seconds are steps times what a step takes, timed in turn."
)
FITS = (
    "A power law through the best of each budget: what is wrong (1 - share) or lost goes by 2 to the power of this "
    "with every doubling of FLOPs; the standard error is that of the seeds."
)


@dataclass(frozen=True, slots=True)
class Curve:
    """Runs of an objective, judged by a figure."""

    budgets: np.ndarray  # [B], TFLOP or seconds
    values: np.ndarray  # [n, B]


def write_section(results: Results) -> str:
    """Fits and ratios."""
    objectives = objectives_of(results)
    pairs = [("insertion", rival) for rival in objectives if rival != "insertion"]
    head = ["", *(f"{a} against {b}, {what}" for a, b in pairs for what in ("FLOPs", "seconds"))]
    rows = []
    for figure in FIGURES:
        cells = [str(ratio(results, figure, a, b, what)) for a, b in pairs for what in ("tflops", "seconds")]
        rows.append([results.experiment.figure[figure].title, *cells])
    fits = [
        [results.experiment.figure[figure].title, *(say_fit(results, figure, objective) for objective in objectives)]
        for figure in FIGURES
    ]
    ratios = make_table(head, rows)
    return "\n\n".join(["## Budgets to be as good", PARITY, ratios, FITS, make_table(["", *objectives], fits)])


def objectives_of(results: Results) -> list[str]:
    """In the order of the file."""
    return list(dict.fromkeys(arm.partition(", ")[0] for arm in results.experiment.arm if ", " in arm))


def budgets_of(results: Results, objective: str) -> list[str]:
    """As the arms name them, in growing order."""
    return list(dict.fromkeys(arm.split(", ")[2] for arm in results.experiment.arm if arm.startswith(f"{objective}, ")))


def all_runs(results: Results, figure: str, objective: str, what: str) -> Curve:
    """Of every size and budget, from the cheapest on."""
    arms = [f"{objective}, {size}, {budget}" for size in SIZES for budget in budgets_of(results, objective)]
    return curve_of(results, figure, sorted(arms, key=lambda arm: cost_of(results, arm, what)), what)


def best_runs(results: Results, figure: str, objective: str, what: str) -> Curve:
    """Of each budget of FLOPs that of the size which is best by the mean over the seeds."""
    sign = -1.0 if results.experiment.figure[figure].is_lower_better else 1.0
    best = [
        max(
            (f"{objective}, {size}, {budget}" for size in SIZES),
            key=lambda arm: sign * float(np.mean(results.values[figure][Point(arm, None)])),
        )
        for budget in budgets_of(results, objective)
    ]
    return curve_of(results, figure, best, what)


def curve_of(results: Results, figure: str, arms: Sequence[str], what: str) -> Curve:
    """Of these runs."""
    return Curve(
        budgets=np.array([cost_of(results, arm, what) for arm in arms]),
        values=np.array([results.values[figure][Point(arm, None)] for arm in arms]).T,
    )


def cost_of(results: Results, arm: str, what: str) -> float:
    """TFLOP of a training, or its seconds."""
    return tflops_of(results, arm) if what == "tflops" else steps_of(results, arm) * step_seconds(results, arm)


def tflops_of(results: Results, arm: str) -> float:
    """Really spent, the mean over the seeds."""
    return float(np.mean([own["training"]["tflops"] for own in results.measured if own["arm"] == arm]))


def steps_of(results: Results, arm: str) -> int:
    """Of its training."""
    return int(next(own["training"]["steps"] for own in results.measured if own["arm"] == arm))


def step_seconds(results: Results, arm: str) -> float:
    """Of its objective and size, timed at the largest budget."""
    objective, size, _ = arm.split(", ")
    largest = budgets_of(results, objective)[-1]
    return results.estimates["step_seconds"][Point(f"pace, {objective}, {size}, {largest}", None)].mean


def ratio(results: Results, figure: str, ours: str, rival: str, what: str) -> Ratio:
    """See PARITY."""
    own = results.experiment.figure[figure]
    sign = -1.0 if own.is_lower_better else 1.0
    curves = (all_runs(results, figure, objective, what) for objective in (ours, rival))
    scores, rivals = (
        Scores(flops=curve.budgets, values=np.maximum.accumulate(sign * curve.values, axis=1)) for curve in curves
    )
    documents = results.experiment.probe[own.probe].documents if own.is_share else 0
    return compare_flops(scores, rivals, documents)


def wrong(results: Results, figure: str, values: np.ndarray) -> np.ndarray:
    """What falls as a model gets better: the share that is not right, with half a document to spare, or the loss."""
    own = results.experiment.figure[figure]
    spare = 0.5 / max(1, results.experiment.probe[own.probe].documents)
    return 1.0 - values + spare if own.is_share else values


def say_fit(results: Results, figure: str, objective: str) -> str:
    """The exponent of the power law, and its standard error."""
    curve = best_runs(results, figure, objective, "tflops")
    slopes = np.polyfit(np.log(curve.budgets), np.log(wrong(results, figure, curve.values)).T, 1)[0]
    error = f" ± {slopes.std(ddof=1) / len(slopes) ** 0.5:.2f}" if len(slopes) > 1 else ""
    return f"{slopes.mean():.2f}{error}"


def draw(results: Results) -> Page:
    """Every run by size and objective over TFLOP and over seconds, with the fitted curve through the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    objectives = objectives_of(results)
    page, panels = pyplot.subplots(4, 3, figsize=(13.5, 14))
    for (half, what), (number, figure) in itertools.product(enumerate(("tflops", "seconds")), enumerate(FIGURES)):
        panel = panels[2 * half + number // 3][number % 3]
        for colour, objective in zip(COLOURS, objectives, strict=False):
            draw_objective(panel, results, figure, objective, what, colour)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("TFLOP of training" if what == "tflops" else "seconds of training, one thread", fontsize=9)
        finish(panel, results.experiment.figure[figure])
    handles = [Line2D([], [], color=colour, label=own) for colour, own in zip(COLOURS, objectives, strict=False)]
    handles += [Line2D([], [], color=INK, marker=mark, linestyle="", label=size) for size, mark in MARKERS.items()]
    page.legend(handles=handles, loc="upper right", ncols=6, frameon=False, fontsize=9)
    page.suptitle(
        f"{results.experiment.title}. Marks: every run; lines: power laws through the best means",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    page.tight_layout(rect=(0, 0, 1, 0.985))
    return page


def draw_objective(panel: Axes, results: Results, figure: str, objective: str, what: str, colour: str) -> None:
    """Its runs, and the curve."""
    for size, budget in itertools.product(SIZES, budgets_of(results, objective)):
        arm = f"{objective}, {size}, {budget}"
        values = results.values[figure][Point(arm, None)]
        x = [cost_of(results, arm, what)] * len(values)
        panel.plot(x, values, MARKERS[size], color=colour, markersize=4, alpha=0.35, markeredgewidth=0)
    curve = best_runs(results, figure, objective, what)
    slope, offset = np.polyfit(np.log(curve.budgets), np.log(wrong(results, figure, curve.values.mean(0))), 1)
    fine = np.geomspace(curve.budgets.min(), curve.budgets.max(), 30)
    fitted = np.exp(offset + slope * np.log(fine))
    is_share = results.experiment.figure[figure].is_share
    panel.plot(fine, wrong(results, figure, fitted).clip(min=0.0) if is_share else fitted, color=colour, linewidth=1.5)
