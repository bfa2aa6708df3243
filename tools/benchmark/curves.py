"""The picture of kept prompts and of blocks: a curve over rows for each way of computing."""

from __future__ import annotations

import itertools
import statistics
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from tools.benchmark import blocks, prompts
from tools.benchmark.drawing import INK, OURS, PEER
from tools.benchmark.result import Series

GREY = "#9aa0a8"
STYLES = ("-o", "--s", ":^")  # of numbers of documents; more begin again
Curve = dict[int, float]  # rows -> the median of what was measured


def draw_curves(series: Series, title: str) -> Figure:
    """Milliseconds of a step over a prompt's rows, without guidance; seconds and rows of a document over its length."""
    figure = Figure(figsize=(15, 4.9), dpi=110, layout="constrained")
    steps, seconds, rows = figure.subplots(1, 3)
    for what, where, colour in ((prompts.ALL, "all rows", PEER), (prompts.KEPT, "prompt kept", OURS)):
        counts = {who: curve for who, curve in curves_of(series[what]).items() if who.isdecimal()}
        for (who, curve), style in zip(counts.items(), itertools.cycle(STYLES)):
            plot(steps, curve, style, colour, f"{where}, {who} document{'s' if int(who) > 1 else ''}")
    for axes, what in ((seconds, blocks.SECONDS), (rows, blocks.ROWS)):
        looks = {blocks.BLOCKS: ("-o", OURS), blocks.WHOLE: ("-o", PEER), blocks.AS_MANY: ("--", GREY)}
        for way, curve in curves_of(series[what]).items():
            plot(axes, curve, *looks[way], way)
    finish(steps, "milliseconds of a step", "rows of the prompt")
    finish(seconds, blocks.SECONDS, "rows of the document")
    finish(rows, blocks.ROWS, "rows of the document")
    figure.suptitle(textwrap.fill(title, 200), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def curves_of(named: Mapping[str, Sequence[float]]) -> dict[str, Curve]:
    """Those of cases "WHO x ROWS", by who."""
    curves: dict[str, Curve] = {}
    for name, values in named.items():
        who, _, rows = name.rpartition(" x ")
        curves.setdefault(who, {})[int(rows)] = statistics.median(values)
    return curves


def plot(axes: Axes, curve: Curve, style: str, colour: str, label: str) -> None:
    """One curve, in the order of rows."""
    rows = sorted(curve)
    axes.plot(rows, [curve[place] for place in rows], style, color=colour, label=label, markersize=5)


def finish(axes: Axes, title: str, what: str) -> None:
    """Both axes are logarithmic, and below are the rows that were measured."""
    rows = sorted({int(row) for line in axes.lines for row in line.get_xdata()})  # type: ignore[union-attr, arg-type]
    axes.set(xscale="log", yscale="log", xlabel=what)
    axes.set_xticks(rows, [f"{row:,}" for row in rows])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(visible=True, axis="y", color="#e6e8eb")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
