"""Figures of an experiment as one picture: lines over what is varied, or a row for each arm."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.experiments.reading import Figure
from tools.experiments.results import Point, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Page
    from matplotlib.figure import SubFigure

COLUMNS, PANEL = 4, (3.6, 2.9)  # of the page, at most; inches
TITLE_WIDTH = 38  # letters
HANDLE, LETTER = 0.6, 0.075  # inches of a legend's line, and of a letter on average
COLOURS = ("#0b6e99", "#d9730d", "#4d8b31", "#9b3d9b", "#c0392b", "#5f6b7a", "#b8860b", "#17a2a2", "#8c564b", "#111111")
INK, GRID = "#1f2933", "#e6e8eb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What one panel shows: a figure, of some of its points."""

    name: str  # of the figure
    world: str  # before the comma in the names of its series, where there is a panel for each; "": all
    points: tuple[Point, ...]

    @property
    def has_lines(self) -> bool:
        """Whether something is varied."""
        return len({point.x for point in self.points}) > 1

    @property
    def series(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(point.series for point in self.points))

    def label(self, series: str) -> str:
        """Of a series, in its panel."""
        return series.removeprefix(f"{self.world}, ") if self.world else series


def draw(results: Results) -> Page:
    """A band of panels for each probe, under a legend where there are lines to be told apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    experiment = results.experiment
    of_probes = [panels for probe in experiment.probe if (panels := panels_of(results, probe))]
    columns = max(columns_of(len(panels)) for panels in of_probes)
    rows = [math.ceil(len(panels) / columns) for panels in of_probes]
    page = pyplot.figure(figsize=(PANEL[0] * columns, PANEL[1] * sum(rows) + 0.4))
    page.set_layout_engine("constrained", h_pad=0.08)
    seeds = len(results.seeds)
    note = f"{experiment.title}. Mean of {seeds} seed{'s' * (seeds != 1)}, 95 % interval; pale: each seed"
    page.suptitle(note, x=0.01, ha="left", fontsize=11, color=INK)
    bands = page.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0]
    for band, own, number in zip(bands, of_probes, rows, strict=True):
        draw_band(band, results, own, number, columns)
    return page


def draw_band(band: SubFigure, results: Results, panels: Sequence[Panel], rows: int, columns: int) -> None:
    """The panels of one probe, row by row, and what their colours mean."""
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(panel.label(series) for panel in panels for series in panel.series))
    axes = band.subplots(rows, columns, squeeze=False).flat
    for axis, panel in itertools.zip_longest(axes, panels):
        if panel is None:
            axis.set_axis_off()
        else:
            draw_panel(axis, results, panel, labels)
    if len(labels) > 1 and any(panel.has_lines for panel in panels):
        handles = [Line2D([], [], color=colour_of(label, labels), marker="o", markersize=4) for label in labels]
        told = without_shared(labels)
        number = legend_columns(told, PANEL[0] * columns)
        band.legend(handles, told, loc="outside upper left", ncols=number, frameon=False, fontsize=9)


def without_shared(labels: Sequence[str]) -> list[str]:
    """Labels without what stands before the first comma, where that is the same in all."""
    shared = labels[0].partition(", ")[0] + ", "
    is_shared = all(label.startswith(shared) for label in labels)
    return [label.removeprefix(shared) if is_shared else label for label in labels]


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Entries in a row of a legend that is so many inches wide."""
    entries = [HANDLE + LETTER * len(label) for label in labels]
    return math.ceil(len(labels) / math.ceil(sum(entries) / width))


def columns_of(count: int) -> int:
    """Columns for so many panels: as few rows as can be, none much emptier than others."""
    return math.ceil(count / math.ceil(count / COLUMNS))


def panels_of(results: Results, probe: str) -> list[Panel]:
    """Of the figures of a probe that are to be drawn and were measured."""
    found = []
    for name, figure in results.experiment.figure.items():
        if figure.probe != probe or not figure.is_drawn:
            continue
        worlds: dict[str, list[Point]] = {}
        for point in results.values[name]:
            worlds.setdefault(point.world(figure), []).append(point)
        found += [Panel(name=name, world=world, points=tuple(points)) for world, points in worlds.items()]
    return found


def colour_of(label: str, labels: Sequence[str]) -> str:
    """Of a line."""
    return COLOURS[labels.index(label) % len(COLOURS)]


def draw_panel(axis: Axes, results: Results, panel: Panel, labels: Sequence[str]) -> None:
    """Lines or rows, title and axes."""
    figure = results.experiment.figure[panel.name]
    probe = results.experiment.probe[figure.probe]
    if panel.has_lines:
        for series in panel.series:
            draw_line(axis, results, panel, series, colour_of(panel.label(series), labels))
        axis.set_xlabel(probe.vary.removeprefix("sampling.").replace("_", " "), fontsize=9)
        if probe.is_log:
            ticks = sorted({point.x for point in panel.points if point.x is not None})
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    else:
        draw_rows(axis, results, panel)
    finish(axis, figure, panel.world)


def draw_line(axis: Axes, results: Results, panel: Panel, series: str, colour: str) -> None:
    """The means of a series over what is varied."""
    by_x = {point.x: point for point in panel.points if point.series == series and point.x is not None}
    x = sorted(by_x)
    own = [results.estimates[panel.name][by_x[value]] for value in x]
    axis.plot(x, [number.mean for number in own], "o-", color=colour, markersize=3.5, linewidth=1.4)
    if own and own[0].seeds > 1:
        low, high = zip(*(number.interval for number in own), strict=True)
        axis.fill_between(x, low, high, color=colour, alpha=0.09, linewidth=0)
    for value in x:
        values = results.values[panel.name][by_x[value]]
        axis.plot([value] * len(values), values, "o", color=colour, markersize=2.5, alpha=0.35)


def draw_rows(axis: Axes, results: Results, panel: Panel) -> None:
    """A row for each series, the first on top."""
    for row, point in enumerate(panel.points):
        own, values = results.estimates[panel.name][point], results.values[panel.name][point]
        low, high = own.interval
        ends = [[own.mean - low], [high - own.mean]]
        axis.errorbar(own.mean, row, xerr=ends, fmt="o", color=COLOURS[0], markersize=5, capsize=3, linewidth=1.2)
        axis.plot(values, [row] * len(values), "o", color=COLOURS[0], markersize=3, alpha=0.35)
    axis.set_yticks(range(len(panel.points)), [panel.label(point.series) for point in panel.points], fontsize=8)
    axis.set_ylim(len(panel.points) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=5)


def finish(axis: Axes, figure: Figure, world: str = "") -> None:
    """Title, grid, and what the data have."""
    title = f"{world}: {figure.title}" if world else figure.title
    title += " (lower is better)" if figure.is_lower_better else ""
    axis.set_title(textwrap.fill(title, TITLE_WIDTH), loc="left", fontsize=9, color=INK)
    if not math.isnan(figure.data):
        line = axis.axhline if axis.get_xlabel() else axis.axvline
        line(figure.data, color=INK, linestyle=":", linewidth=1)
    axis.grid(visible=True, color=GRID)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
