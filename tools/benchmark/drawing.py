"""Pictures of results: training steps, and contests of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.benchmark.report import by_job, compare, describe, in_words, of_kind, rated
from tools.benchmark.schedule import Line

OURS, FLOAT8, PEER, INK, FAINT = "#2f6fb3", "#4aa5a5", "#d9822b", "#30343b", "#8a9099"
GOAL_MFU = 0.6  # of the compiled bf16 variant; a goal, not a result


def draw(lines: Sequence[Line], folder: Path) -> None:
    """Write the pictures that there are numbers for."""
    if of_kind(lines, "step"):
        draw_steps(lines, folder / "steps.png")
    if of_kind(lines, "contender"):
        draw_contests(lines, folder / "contests.png")


def draw_steps(lines: Sequence[Line], path: Path) -> None:
    """Write a picture of the training steps. A variant is a line; its bar is the mean of its rounds, each a dot."""
    measured: dict[str, list[Line]] = {}
    for line in rated(lines):
        packs = f", {line['packs']} packs" if line["packs"] > 1 else ""
        measured.setdefault(line["name"] + packs, []).append(line)
    figure = Figure(figsize=(15, 2.6 + 0.36 * len(measured)), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.15, 1.0, 1.0))
    draw_rates(axes[0], measured)
    draw_shares(axes[1], measured)
    draw_memory(axes[2], measured)
    axes[0].set_yticks(range(len(measured)), list(measured))
    axes[0].set_ylim(len(measured) - 0.4, -0.6)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#e6e8eb")
        axis.set_axisbelow(True)
    figure.suptitle(
        "\n".join([_title(lines), *map(in_words, compare(lines))]), x=0.01, ha="left", fontsize=11, color=INK
    )
    figure.savefig(path)


def draw_rates(axis: Axes, measured: dict[str, list[Line]]) -> None:
    """Thousand rows (the peer: tokens) per second."""
    for place, (name, entries) in enumerate(measured.items()):
        values = [entry["rows_per_second"] / 1e3 for entry in entries]
        _bar(axis, place, values, _colour(name), "{:.1f}")
    axis.set_title("thousand rows per second", loc="left", fontsize=10)


def draw_shares(axis: Axes, measured: dict[str, list[Line]]) -> None:
    """MFU against the vendor's peak as bars, against the measured product as ticks."""
    for place, (name, entries) in enumerate(measured.items()):
        _bar(axis, place, [100 * e["mfu"] for e in entries if e["mfu"]], _colour(name), "{:.1f} %", inside=True)
        shares = [100 * e["mfu_of_measured_matmul"] for e in entries if e["mfu_of_measured_matmul"]]
        axis.plot(shares, [place] * len(shares), "|", color=INK, markersize=13)
    axis.axvline(100 * GOAL_MFU, color="#b3363b", linestyle=":", linewidth=1.2)
    axis.set_xlim(left=0.0)
    axis.set_title(
        "MFU, % of the vendor's bf16 peak\n(| of the measured product; dotted: the goal)", loc="left", fontsize=10
    )


def draw_memory(axis: Axes, measured: dict[str, list[Line]]) -> None:
    """GiB at the peak: measured as bars, planned as outlines behind them."""
    for place, (name, entries) in enumerate(measured.items()):
        planned = [entry["planned_peak_gib"] for entry in entries if entry["planned_peak_gib"]]
        if planned:
            axis.barh(place, planned[0], height=0.78, color="none", edgecolor=INK, linewidth=1.0)
        peaks = [e["peak_gib"] for e in entries if e["peak_gib"]]
        _bar(axis, place, peaks, _colour(name), "{:.1f}", inside=True)
    axis.set_title("peak memory, GiB (outline: planned)", loc="left", fontsize=10)


def _bar(axis: Axes, place: int, values: list[float], colour: str, style: str, inside: bool = False) -> None:
    if not values:
        return
    mean = sum(values) / len(values)
    axis.barh(place, mean, height=0.6, color=colour)
    if len(values) > 1:
        axis.plot(values, [place] * len(values), "o", color="white", markeredgecolor=INK, markersize=4)
    label = style.format(mean)
    if inside:
        axis.text(0.0, place, f" {label}", va="center", color="white", fontsize=8)
    else:
        axis.annotate(label, (max(values), place), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _colour(name: str) -> str:
    if name.startswith("torchtitan"):
        return PEER
    return FLOAT8 if "float8" in name else OURS


def draw_contests(lines: Sequence[Line], path: Path) -> None:
    """Write a picture: a panel for each case, a bar for each contender, ours in blue."""
    cases = by_job(lines, "contender", "case")
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(5.6 * columns, 0.6 + 2.3 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for (name, contenders), axes in zip(cases.items(), panels, strict=False):
        _draw_case(axes, name, contenders)
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    figure.suptitle(f"{_title(lines)}\nmilliseconds, lower is better", x=0.01, ha="left", fontsize=10, color=INK)
    figure.savefig(path)


def _draw_case(axes: Axes, name: str, entries: Sequence[Line]) -> None:
    times = [entry.get("ms", 0.0) for entry in entries]
    colours = [OURS if entry["is_ours"] else PEER for entry in entries]
    axes.barh(range(len(entries)), times, color=colours, height=0.65)
    best = next((entry["ms"] for entry in entries if entry["is_ours"]), None)
    for place, entry in enumerate(entries):
        if "failed" in entry:
            axes.annotate(f" {entry['failed'][:44]}", (0, place), va="center", fontsize=7, color=FAINT)
            continue
        ratio = "" if entry["is_ours"] or best is None else f"   {entry['ms'] / best:.2f}x"
        label = f"{entry['ms']:.3g}{ratio}"
        axes.annotate(label, (entry["ms"], place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(entries)), [entry["name"] for entry in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(times, default=1.0) or 1.0)
    axes.set_title(name, loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _title(lines: Sequence[Line]) -> str:
    return "; ".join(map(describe, of_kind(lines, "machine")[-1:]))
