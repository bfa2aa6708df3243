"""A picture of a result: how fast each variant is, how much of the device it uses, and memory planned and measured."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneflow_dist.measuring.summary import Entry

GOAL_MFU = 0.6  # of the compiled bf16 variant; a goal, not a result
OURS, FLOAT8, PEER, FAINT, INK = "#2f6fb3", "#4aa5a5", "#d9822b", "#c9cdd3", "#30343b"


def draw_result(result: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG. A variant is a line; its bar is the mean of its rounds, each round a dot."""
    runs = result["runs"]
    names = list(dict.fromkeys(entry["name"] for entry in runs))
    figure = Figure(figsize=(15, 2.6 + 0.36 * len(names)), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.15, 1.0, 1.0))
    rounds = {name: [entry for entry in runs if entry["name"] == name] for name in names}
    measured = {name: [e for e in rounds[name] if e["status"] == "measured"] for name in names}
    draw_rates(axes[0], measured)
    draw_shares(axes[1], measured)
    draw_memory(axes[2], measured)
    for place, name in enumerate(names):
        if not measured[name]:
            entry = rounds[name][0]
            reason = textwrap.shorten(f"{entry['status']}: {entry['reason']}", 56, placeholder=" …")
            axes[0].text(0.0, place, f" {reason}", va="center", color="#8a9099", fontsize=8)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#e6e8eb")
        axis.set_axisbelow(True)
    figure.suptitle(title(result), x=0.01, ha="left", fontsize=11, color=INK)
    figure.savefig(path)


def title(result: dict[str, Any]) -> str:
    """What was measured on what, when, and the comparison in words."""
    machine = result["machine"]
    versions = f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['driver']}"
    lines = [f"{machine['device']}, {versions}; commit {machine['commit']}, {machine['date']}"]
    for documents, ratio in result["comparison"].items():
        lines.append(
            f"{ratio['ours']} against {ratio['peer']} ({documents} a step): "
            f"{ratio['rows_per_second_ratio']:.2f}x the rows per second, {ratio['tflops_ratio']:.2f}x the FLOP rate"
        )
    return "\n".join(lines)


def draw_rates(axis: Axes, measured: dict[str, list[Entry]]) -> None:
    """Thousand rows (the peer: tokens) per second."""
    for place, (name, entries) in enumerate(measured.items()):
        values = [entry["measured"]["rows_per_second"] / 1e3 for entry in entries]
        _bar(axis, place, values, _colour(name), "{:.1f}")
    axis.set_title("thousand rows per second", loc="left", fontsize=10)


def draw_shares(axis: Axes, measured: dict[str, list[Entry]]) -> None:
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


def draw_memory(axis: Axes, measured: dict[str, list[Entry]]) -> None:
    """GiB at the peak: measured as bars, planned as outlines behind them."""
    for place, (name, entries) in enumerate(measured.items()):
        planned = [entry["planned_peak_gib"] for entry in entries if entry.get("planned_peak_gib")]
        if planned:
            axis.barh(place, planned[0], height=0.78, color="none", edgecolor=INK, linewidth=1.0)
        peaks = [e["measured"]["peak_gib"] for e in entries if e["measured"]["peak_gib"]]
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
