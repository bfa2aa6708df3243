"""A picture of the lanes of a step: who computes, who sends, who waits."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from oneflow_dist.planning.timeline import DEVICE, Bar, Timeline

INK, QUIET, GRID = "#1c2430", "#6b7684", "#e6e8eb"
COLOURS = {
    "forward": "#2f6fb2",
    "backward": "#123a68",
    "update": "#7a4fa3",
    "all_gather": "#2a9d6f",
    "reduce_scatter": "#d98324",
    "all_reduce": "#b8476b",
    "broadcast": "#8a8f98",
    "all_to_all": "#1f9aa8",
}
WAITING = "#d62828"
ORDER = (DEVICE, "tensor", "context", "shard", "shard_tensor", "replicate", "all")
HEIGHT = 0.56  # of a bar
SHORTEST = 1e-3  # share of the whole that a bar needs to be seen


def draw_timeline(timeline: Timeline, title: str) -> Figure:
    """Lanes over milliseconds; red are the moments in which the device waits for a lane.

    Lanes that send less than a thousandth of the time have no line.
    """
    seen = {bar.lane for bar in timeline.bars if bar.lane == DEVICE}
    seen |= {lane for lane, busy in timeline.busy.items() if busy > SHORTEST * timeline.seconds}
    lanes = [lane for lane in ORDER if lane in seen]
    figure = Figure(figsize=(14, 1.9 + 0.85 * len(lanes)), dpi=110, layout="constrained")
    panel = figure.add_subplot()
    for place, lane in enumerate(lanes):
        _draw_lane(panel, place, [bar for bar in timeline.bars if bar.lane == lane])
        _mark_waits(panel, place, lane, timeline)
    _finish(panel, lanes, timeline)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    kinds = [kind for kind in COLOURS if any(bar.what == kind and bar.lane in lanes for bar in timeline.bars)]
    handles = [Patch(color=COLOURS[kind], label=kind.replace("_", " ")) for kind in kinds]
    handles.append(Patch(facecolor="white", edgecolor=WAITING, hatch="////", label="the device waits"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=10)
    return figure


def _draw_lane(panel: Axes, place: int, bars: Sequence[Bar]) -> None:
    for what in dict.fromkeys(bar.what for bar in bars):
        spans = [(1e3 * bar.start, 1e3 * (bar.end - bar.start)) for bar in bars if bar.what == what]
        edge = "white" if bars[0].lane == DEVICE and len(bars) < 300 else COLOURS[what]  # short ones are seen, too
        panel.broken_barh(spans, (place - HEIGHT / 2, HEIGHT), facecolor=COLOURS[what], edgecolor=edge, linewidth=0.5)


def _mark_waits(panel: Axes, place: int, lane: str, timeline: Timeline) -> None:
    """Hatched on the device's lane, a red line under the lane that it waits for."""
    waits = timeline.waits if lane == DEVICE else [wait for wait in timeline.waits if wait.lane == lane]
    spans = [(1e3 * wait.start, 1e3 * (wait.end - wait.start)) for wait in waits]
    if lane == DEVICE:
        span = place - HEIGHT / 2, HEIGHT
        panel.broken_barh(spans, span, facecolor="white", edgecolor=WAITING, hatch="////", linewidth=0.6)
    else:
        panel.broken_barh(spans, (place + HEIGHT / 2 + 0.05, 0.1), facecolor=WAITING, edgecolor=WAITING, linewidth=0.6)


def _finish(panel: Axes, lanes: Sequence[str], timeline: Timeline) -> None:
    whole = 1e3 * timeline.seconds
    panel.set(xlim=(0.0, whole), ylim=(len(lanes) - 0.4, -0.6), xlabel="milliseconds")
    panel.set_yticks(range(len(lanes)), [_name(lane, timeline) for lane in lanes], fontsize=11, color=INK)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", colors=QUIET)
    panel.xaxis.label.set_color(QUIET)
    panel.grid(visible=True, axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    exposed = sum(timeline.exposed.values())
    shares = f"{timeline.compute / timeline.seconds:.1%} computing\n{exposed / timeline.seconds:.1%} waiting"
    end = f"{whole:,.1f} ms\n{shares}"
    panel.annotate(
        end,
        (1.0, 0.5),
        xycoords="axes fraction",
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        color=INK,
    )


def _name(lane: str, timeline: Timeline) -> str:
    if lane == DEVICE:
        return f"device\n{1e3 * timeline.compute:,.0f} ms busy"
    return f"{lane}\n{1e3 * timeline.busy[lane]:,.0f} ms, {1e3 * timeline.exposed[lane]:,.0f} exposed"
