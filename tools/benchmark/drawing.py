"""Pictures of results: training steps, and contests of kernels."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.benchmark.report import Line, compare, describe, in_words, latest, of_kind, rated
from tools.benchmark.result import Series, side_by_side

OURS, FLOAT8, PEER, INK = "#2f6fb3", "#4aa5a5", "#d9822b", "#30343b"
PEERS = ("torchtitan", "webdataset", "autoregressive", "bare encoder")  # names of series
GOAL_MFU = 0.6  # of the compiled bf16 variant; a goal, not a result
PANELS = (  # of training steps: title, field, factor, how it is written, field of the marks
    ("thousand rows per second", "rows_per_second", 1e-3, ".1f", ""),
    ("MFU, % of the vendor's bf16 peak (| of the measured product)", "mfu", 100, ".1f", "mfu_of_measured_matmul"),
    ("peak memory, GiB (| planned)", "peak_gib", 1, ".1f", "planned_peak_gib"),
)


def draw(lines: Sequence[Line], folder: Path) -> None:
    """Write the pictures that there are numbers for."""
    if of_kind(lines, "step"):
        draw_steps(lines).savefig(folder / "steps.png")
    if of_kind(lines, "contender"):
        draw_contests(lines).savefig(folder / "contests.png")


def draw_steps(lines: Sequence[Line]) -> Figure:
    """A row for each variant; a bar is the mean of its rounds."""
    variants: dict[str, list[Line]] = {}
    for step in rated(lines):
        variants.setdefault(step["title"], []).append(step)
    figure = Figure(figsize=(15, 2.6 + 0.36 * len(variants)), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    colours = [PEER if name.startswith("torchtitan") else FLOAT8 if "float8" in name else OURS for name in variants]
    for panel, (title, field, factor, style, mark) in zip(axes, PANELS, strict=True):
        values, marks = (
            [[factor * step[key] for step in steps if step.get(key)] for steps in variants.values()]
            for key in (field, mark)
        )
        labels = [format(statistics.fmean(numbers), style) if numbers else "" for numbers in values]
        draw_bars(panel, title, list(variants), values, labels, colours)
        for height, numbers in enumerate(marks):
            panel.plot(numbers, [height] * len(numbers), "|", color=INK, markersize=13)
        if field == "mfu":
            panel.axvline(100 * GOAL_MFU, color=INK, linestyle=":", label="goal")
            panel.legend(loc="lower right", fontsize=8)
    _entitle(figure, lines, *map(in_words, compare(lines)))
    return figure


def draw_contests(lines: Sequence[Line]) -> Figure:
    """A panel for each case, a bar for each contender with its ratio to ours, ours in blue."""
    cases = latest(lines, "contender", "case")
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(5.6 * columns, 0.6 + 2.3 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for (name, contenders), panel in zip(cases.items(), panels, strict=False):
        ours = next((line["ms"] for line in contenders if line["is_ours"] and "ms" in line), None)
        labels = [
            line["failed"][:44]
            if "failed" in line
            else f"{line['ms']:.3g}" + (f"   {line['ms'] / ours:.2f}x" if ours and not line["is_ours"] else "")
            for line in contenders
        ]
        values = [[] if "failed" in line else [line["ms"]] for line in contenders]
        colours = [OURS if line["is_ours"] else PEER for line in contenders]
        draw_bars(panel, name, [line["name"] for line in contenders], values, labels, colours)
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    _entitle(figure, lines, "milliseconds, lower is better")
    return figure


def draw_series(series: Series, title: str) -> Figure:
    """A panel for each that has several values: a bar is as long as their mean, they are dots.

    Where none has, as of what is computed, a panel for all those of the same names, side by side.
    """
    repeated = {what: named for what, named in series.items() if any(len(values) > 1 for values in named.values())}
    groups = [] if repeated else list(side_by_side(series).items())
    heights = [1.5 + len(named) for named in repeated.values()]
    heights += [2.5 + len(names) * (1 + len(group)) / 2 for names, group in groups]
    figure = Figure(figsize=(9, 0.9 + 0.34 * sum(heights)), dpi=100, layout="constrained")
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights).ravel().tolist()
    for (what, named), panel in zip(repeated.items(), panels, strict=False):
        labels = [f"{statistics.fmean(values):.4g}" if values else "" for values in named.values()]
        colours = [PEER if name in PEERS else OURS for name in named]
        draw_bars(panel, what, list(named), list(named.values()), labels, colours)
    for (names, group), panel in zip(groups, panels, strict=False):
        draw_side_by_side(panel, names, group)
    figure.suptitle(textwrap.fill(title, 120), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def draw_side_by_side(axes: Axes, names: Sequence[str], group: Series) -> None:
    """A bar of each for each name."""
    room = len(group) + 1
    for number, (what, named) in enumerate(group.items()):
        heights = [room * place + number for place in range(len(names))]
        bars = axes.barh(heights, [named[name][0] for name in names], height=0.9, label=what, color=f"C{number}")
        axes.bar_label(bars, fmt="{:.4g}", padding=4, fontsize=7)
    axes.set_yticks([room * place + (len(group) - 1) / 2 for place in range(len(names))], list(names), fontsize=8)
    axes.set_ylim(room * len(names) - 1, -1)
    axes.margins(x=0.12)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_ratios(ratios: Mapping[str, tuple[float, float, float]], title: str) -> Figure:
    """Least, value and most of each beside a line at 1; grey where that lies between."""
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(ratios)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for height, (low, value, high) in enumerate(ratios.values()):
        colour = INK if low == high else "#9aa0a8" if low <= 1.0 <= high else OURS
        axes.plot([low, high], [height, height], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot(value, height, "o", color=colour)
        axes.annotate(f"{value:.3f}", (high, height), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1.0, color=INK, linestyle=":")
    axes.set_yticks(range(len(ratios)), list(ratios), fontsize=8)
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_title("B / A; grey: no difference beyond noise", loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, 120), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def draw_bars(
    axes: Axes,
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    labels: Sequence[str],
    colours: Sequence[str],
) -> None:
    """A bar for each name, as long as the mean of its values; several values are a dot each."""
    for height, (numbers, label, colour) in enumerate(zip(values, labels, colours, strict=True)):
        end = max(numbers, default=0.0)
        axes.barh(height, statistics.fmean(numbers) if numbers else 0.0, height=0.65, color=colour)
        if len(numbers) > 1:
            axes.plot(numbers, [height] * len(numbers), "o", color="white", markeredgecolor=INK, markersize=4)
        axes.annotate(label, (end, height), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * (max((max(numbers) for numbers in values if numbers), default=0.0) or 1.0))
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _entitle(figure: Figure, lines: Sequence[Line], *more: str) -> None:
    title = "\n".join([*map(describe, of_kind(lines, "machine")[-1:]), *more])
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
