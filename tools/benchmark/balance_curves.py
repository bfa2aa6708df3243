"""The picture of equal work: how packs spread, how much of a step ranks work, and from which size of packs on."""

from __future__ import annotations

import statistics
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.benchmark.balance import ENOUGH, PACKINGS, WORK
from tools.benchmark.curves import GREY, curves_of
from tools.benchmark.drawing import INK, OURS, PEER
from tools.benchmark.result import Series

COLOURS = dict(zip(PACKINGS, (PEER, OURS), strict=True))
WIDEST, BIN = 2.6, 0.05  # of the panels of packs, in means of a step
ROOM = 0.8  # of their height is for packs, the rest for words


def draw_balance(series: Series, title: str) -> Figure:
    """Above packs by their work, a panel for each kind of documents; below steps, and the size of packs."""
    kinds = list(series[ENOUGH])
    by_rows = next((what for what in series if "by rows" in what), "")
    of_steps = [what for what in series if what.startswith("mean / most") and what != by_rows and "begin" not in what]
    swept = sorted({name.split(", ")[0] for name in series.get(by_rows, {})}, key=kinds.index)
    columns = max(len(kinds), 1 + len(swept))
    figure = Figure(figsize=(4.1 * columns, 7.4), dpi=110, layout="constrained")
    above, below = figure.subplots(2, columns, squeeze=False)
    for kind, axes in zip(kinds, above, strict=False):
        draw_packs(axes, series[WORK], kind, series[of_steps[-1]])
    draw_steps(below[0], series[of_steps[-1]], of_steps[-1])
    for kind, axes in zip(swept, below[1:], strict=False):
        draw_sizes(axes, series[by_rows], kind, series[ENOUGH][kind][0], by_rows)
    for axes in [*above[len(kinds) :], *below[1 + len(swept) :]]:
        axes.set_axis_off()
    figure.suptitle(textwrap.fill(title, 55 * columns), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def draw_packs(axes: Axes, work: dict[str, list[float]], kind: str, balance: dict[str, list[float]]) -> None:
    """How many packs have which work; a dotted line is the pack that a step waits for, in the mean."""
    edges = np.arange(0.0, WIDEST + BIN, BIN)
    for line, (packing, colour) in enumerate(COLOURS.items()):
        name = f"{kind}, {packing}"
        counts, _ = np.histogram(np.minimum(work[name], WIDEST - BIN / 2), edges)
        shares = 100.0 * counts / len(work[name])
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(shares, edges, color=colour, linewidth=1.4, label=packing)
        slowest = 100.0 / statistics.fmean(balance[name])
        axes.axvline(min(slowest, WIDEST), color=colour, linestyle=":", linewidth=1.6, ymax=ROOM)
        note = f"{packing}: the slowest {slowest:.2f}"
        axes.text(0.99, 0.93 - 0.09 * line, note, color=colour, fontsize=8.5, ha="right", transform=axes.transAxes)
    axes.set(
        xlim=(0.0, WIDEST), ylim=(0.0, axes.dataLim.y1 / ROOM), xlabel="attention pairs of a pack / mean of its step"
    )
    _finish(axes, f"{kind}: % of packs")


def draw_steps(axes: Axes, balance: dict[str, list[float]], title: str) -> None:
    """A dot for each step, a bar for their mean."""
    for place, (name, values) in enumerate(balance.items()):
        colour = COLOURS[name.split(", ")[1]]
        height = place + 0.5 * (place // 2)  # a gap between kinds
        mean = statistics.fmean(values)
        axes.barh(height, mean, height=0.8, color=colour, alpha=0.35)
        axes.plot(values, np.full(len(values), height), "o", color=colour, markersize=3, alpha=0.6)
        axes.annotate(f"{mean:.1f}", (102.0, height), va="center", fontsize=8.5, color=colour, annotation_clip=False)
    kinds = [name.split(", ")[0] for name in list(balance)[::2]]
    axes.set_yticks([2.5 * place + 0.5 for place in range(len(kinds))], kinds, fontsize=8.5)
    axes.set(xlim=(0.0, 100.0), xlabel="%, a dot for each step")
    axes.invert_yaxis()
    _finish(axes, title.replace(", %", ""))
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)


def draw_sizes(axes: Axes, balance: dict[str, list[float]], kind: str, enough: float, title: str) -> None:
    """Balance over the size of packs; a dotted line is the size at which one longest document is a pack's share."""
    for who, curve in curves_of(balance).items():
        name, packing = who.split(", ")
        if name == kind:
            axes.plot(list(curve), list(curve.values()), "-o", color=COLOURS[packing], label=packing, markersize=5)
    axes.axvline(enough, color=GREY, linestyle=":")
    axes.annotate(f" longest / pairs of a row\n = {enough:.1f}", (enough, 2.0), fontsize=8, color=INK, va="bottom")
    axes.set(ylim=(0.0, 100.0), xlim=(0.0, None), xlabel="rows of a pack / rows of the longest document")
    _finish(axes, f"{kind}: {title.split(', %')[0]}, %")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(visible=True, axis="y", color="#e6e8eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
