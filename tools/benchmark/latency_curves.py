"""The picture of documents of forced length: seconds over text tokens, a curve for each way of writing."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from tools.benchmark.curves import GREY, curves_of, finish, plot
from tools.benchmark.drawing import INK, OURS, PEER
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION
from tools.benchmark.result import Series

COLOURS: dict[str, str] = {INSERTION: OURS, CACHED: PEER, ANEW: GREY}
STYLES = ("-o", "--s", ":^", "-.d")  # of numbers of documents; more begin again


def draw_latency(series: Series, title: str) -> Figure:
    """A row for what was measured, one for what was planned; in it a panel for each number of images."""
    rows = {what: curves_of(named) for what, named in series.items() if what.startswith("seconds ")}
    columns = list(dict.fromkeys(who.split(", ")[0] for curves in rows.values() for who in curves))
    size = (5 * len(columns), 0.6 + 4.2 * len(rows))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for (what, curves), of_row in zip(rows.items(), panels, strict=True):
        for images, axes in zip(columns, of_row, strict=True):
            parts = {who: who.split(", ") for who in curves if who.startswith(f"{images}, ")}
            counts = list(dict.fromkeys(count for _, count, _ in parts.values()))
            for who, (_, count, way) in parts.items():
                style = STYLES[counts.index(count) % len(STYLES)]
                plot(axes, curves[who], style, COLOURS[way], f"{way}, {count}")
            finish(axes, f"{what}; {images}", "text tokens")
    figure.suptitle(textwrap.fill(title, 60 * len(columns)), x=0.01, ha="left", fontsize=8, color=INK)
    return figure
