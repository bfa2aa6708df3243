"""Figures of an experiment as one picture: lines over what is varied, or a row for each arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tools.experiments.reading import Figure
from tools.experiments.results import Point, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Page

COLUMNS, PANEL = 3, (4.3, 3.3)  # of the page; inches
COLOURS = ("#0b6e99", "#d9730d", "#4d8b31", "#9b3d9b", "#c0392b", "#5f6b7a", "#b8860b", "#17a2a2", "#8c564b", "#111111")
INK, GRID = "#1f2933", "#e6e8eb"


def draw(results: Results) -> Page:
    """A panel for each figure that is to be drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    experiment = results.experiment
    names = [name for name, own in experiment.figure.items() if own.is_drawn and results.values[name]]
    lines = {name: len({point.x for point in results.values[name]}) > 1 for name in names}
    series = list(dict.fromkeys(point.series for name in names if lines[name] for point in results.values[name]))
    has_legend = len(series) > 1
    columns = min(COLUMNS, len(names) + has_legend)
    rows = math.ceil((len(names) + has_legend) / columns)
    page, panels = pyplot.subplots(rows, columns, figsize=(PANEL[0] * columns, PANEL[1] * rows), squeeze=False)
    flat = list(panels.flat)
    for panel, name in zip(flat, names, strict=False):
        figure = experiment.figure[name]
        if lines[name]:
            draw_lines(panel, results, name, series, experiment.probe[figure.probe].is_log)
            panel.set_xlabel(axis_title(experiment.probe[figure.probe].vary), fontsize=9)
        else:
            draw_rows(panel, results, name)
        finish(panel, figure)
    for panel in flat[len(names) :]:
        panel.set_axis_off()
    if has_legend:
        handles = [Line2D([], [], color=colour_of(one, series), marker="o", markersize=4) for one in series]
        flat[len(names)].legend(handles, series, loc="center", frameon=False, fontsize=9)
    seeds = len(results.seeds)
    note = f"{experiment.title}. Mean of {seeds} seed{'s' * (seeds != 1)}, 95 % interval; pale: each seed"
    page.suptitle(note, x=0.01, ha="left", fontsize=10, color=INK)
    page.tight_layout(rect=(0, 0, 1, 0.99))
    return page


def axis_title(vary: str) -> str:
    """What is varied, for people."""
    return vary.removeprefix("sampling.").replace("_", " ")


def colour_of(one: str, series: list[str]) -> str:
    """Of a line."""
    return COLOURS[series.index(one) % len(COLOURS)]


def draw_lines(panel: Axes, results: Results, name: str, series: list[str], is_log: bool) -> None:
    """The means of each series over what is varied."""
    for one in series:
        by_x = {point.x: point for point in results.values[name] if point.series == one and point.x is not None}
        if not by_x:
            continue
        x, colour = sorted(by_x), colour_of(one, series)
        points = [by_x[value] for value in x]
        own = [results.estimates[name][point] for point in points]
        mean = np.array([number.mean for number in own])
        panel.plot(x, mean, "o-", color=colour, markersize=3.5, linewidth=1.4)
        if own[0].seeds > 1:
            half = np.array([number.half_interval for number in own])
            panel.fill_between(x, mean - half, mean + half, color=colour, alpha=0.13, linewidth=0)
        for value, point in zip(x, points, strict=True):
            values = results.values[name][point]
            panel.plot([value] * len(values), values, "o", color=colour, markersize=2.5, alpha=0.35)
    if is_log:
        panel.set_xscale("log", base=2)
        ticks = sorted({point.x for point in results.values[name] if point.x is not None})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()


def draw_rows(panel: Axes, results: Results, name: str) -> None:
    """A row for each series, the first on top."""
    points: list[Point] = list(results.values[name])
    for row, point in enumerate(points):
        own, values = results.estimates[name][point], results.values[name][point]
        half = own.half_interval if own.seeds > 1 else 0.0
        panel.errorbar(own.mean, row, xerr=half, fmt="o", color=COLOURS[0], markersize=5, capsize=3, linewidth=1.2)
        panel.plot(values, [row] * len(values), "o", color=COLOURS[0], markersize=3, alpha=0.35)
    panel.set_yticks(range(len(points)), [point.series for point in points], fontsize=8)
    panel.set_ylim(len(points) - 0.5, -0.5)


def finish(panel: Axes, figure: Figure) -> None:
    """Title, grid, and what the data have."""
    title = figure.title + (" (lower is better)" if figure.is_lower_better else "")
    panel.set_title(title, loc="left", fontsize=10, color=INK)
    if not math.isnan(figure.data):
        line = panel.axhline if panel.get_xlabel() else panel.axvline
        line(figure.data, color=INK, linestyle=":", linewidth=1)
    panel.grid(visible=True, color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
