"""The page of a comparison: quality over FLOPs and over seconds, a colour for each objective."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from tools.benchmark.drawing import FLOAT8, INK, OURS, PEER
from tools.comparison.figures import FIGURES
from tools.comparison.means import Outcome

COLOURS = {"insertion": OURS, "autoregressive": PEER, "masked": FLOAT8}
STYLES = ("-o", "--s", ":^", "-.D")  # of configs of one objective; more begin again
COLUMNS = 4


def draw(outcomes: Sequence[Outcome], note: str) -> Figure:
    """Seven figures over TFLOP above, over seconds below; points are seeds, lines go through their means."""
    page = Figure(figsize=(16, 13.5), dpi=100, layout="constrained")
    (above,), (below,) = page.subfigures(2, 1, squeeze=False, hspace=0.03)
    draw_half(above, outcomes, "TFLOP of training", [outcome.flops / 1e12 for outcome in outcomes])
    draw_half(below, outcomes, "seconds of training", [outcome.seconds for outcome in outcomes])
    names = ", ".join(outcome.name for outcome in outcomes)
    title = f"{names}: the same data, budget and seeds"
    page.suptitle(f"{title}\n{textwrap.fill(note, 150)}", x=0.01, ha="left", fontsize=12, color=INK)
    return page


def draw_half(half: SubFigure, outcomes: Sequence[Outcome], what: str, budgets: Sequence[np.ndarray]) -> None:
    """A panel for each figure that is drawn, and the legend in the last."""
    drawn = [figure for figure in FIGURES if figure.is_drawn]
    panels = half.subplots(-(-(len(drawn) + 1) // COLUMNS), COLUMNS).ravel().tolist()
    looks = styles_of(outcomes)
    for panel, figure in zip(panels, drawn, strict=False):
        for outcome, budget, (style, colour) in zip(outcomes, budgets, looks, strict=True):
            values = outcome.values(figure)
            panel.plot(budget.T, values.T, style[-1], color=colour, markersize=4.5, alpha=0.4, markeredgewidth=0)
            panel.plot(budget.mean(0), values.mean(0), style, color=colour, markersize=5.5, label=outcome.name)
        title = f"{figure.title}\n" + ("lower is better" if figure.is_lower_better else "share, higher is better")
        finish(panel, title, what)
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    handles, names = panels[0].get_legend_handles_labels()
    kinds = [outcome.contender.config.objective.kind for outcome in outcomes]
    labels = [f"{name}\n({kind})" for name, kind in zip(names, kinds, strict=True)]
    text = "line: mean over seeds\npale: each seed"
    panels[-1].legend(handles, labels, loc="center left", fontsize=11, frameon=False, title=text, alignment="left")


def styles_of(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Line and colour of each."""
    seen: Counter[str] = Counter()
    looks = []
    for outcome in outcomes:
        kind = outcome.contender.config.objective.kind
        looks.append((STYLES[seen[kind] % len(STYLES)], COLOURS[kind]))
        seen[kind] += 1
    return looks


def finish(panel: Axes, title: str, what: str) -> None:
    """Title, scales and grid."""
    panel.set(xscale="log", xlabel=what)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(x=0.12, y=0.12)
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.grid(visible=True, color="#e6e8eb")
    panel.spines[["top", "right"]].set_visible(False)
