"""Results of contests as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, PEER, INK, FAINT = "#2f6fb3", "#d9822b", "#30343b", "#8a9099"


def contest_tables(result: dict[str, Any]) -> str:
    """Markdown: the device, the checks of the kernels' numbers, and one table a contest."""
    machine, kernels = result["machine"], result["kernels"]
    head = (
        f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}; "
        f"commit {machine['commit']}, {machine['date']}. Milliseconds are medians of rounds in which all contenders "
        "took turns; errors are norms of differences from float64, relative to the norm of the result."
    )
    parts = [head]
    matmul = kernels and kernels["matmul_tflops"]
    if kernels:
        parts += [f"A large product runs at {matmul:.1f} TFLOP/s here.", _checks(kernels["checks"])]
    return "\n\n".join([*parts, *(_table(case, matmul) for case in result["cases"])]) + "\n"


def _checks(checks: list[dict[str, Any]]) -> str:
    lines = ["### Numbers", "", "| kernel | dtype | error | of the definition | |", "|---|---|---:|---:|---|"]
    for check in checks:
        verdict = "right" if check["is_right"] else "**wrong**"
        errors = f"{check['error']:.1e} | {check['error_of_definition']:.1e}"
        lines.append(f"| {check['name']} | {check['dtype']} | {errors} | {verdict} |")
    return "\n".join(lines)


def _table(case: dict[str, Any], matmul: float | None) -> str:
    names = list(dict.fromkeys(name for entry in case["contenders"] for name in entry.get("errors", {})))
    head = ["", "ms", "least to most", "TFLOP/s", "of the product", "GiB/s", "peak GiB", *(f"error {n}" for n in names)]
    lines = [f"### {case['name']}", "", f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for entry in case["contenders"]:
        if "failed" in entry:
            name, reason = (entry[key].replace("|", "/") for key in ("name", "failed"))
            lines.append(f"| {name} | {reason} |" + " |" * (len(head) - 2))
            continue
        low, high = entry["ms_range"]
        tflops, speed, peak = entry["tflops"], entry["gib_per_second"], entry["peak_gib"]
        cells = [
            f"**{entry['name']}**" if entry["is_ours"] else entry["name"],
            f"{entry['ms']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{tflops:.1f}" if tflops else "",
            f"{tflops / matmul:.1%}" if tflops and matmul else "",
            f"{speed:.0f}" if speed else "",
            "" if peak is None else f"{peak:.2f}",
            *(f"{entry['errors'][name]:.1e}" for name in names),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_contests(result: dict[str, Any], path: Path) -> None:
    """Write a picture: a panel for each case, a bar for each contender, ours in blue."""
    cases = result["cases"]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(5.6 * columns, 0.6 + 2.3 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for case, axes in zip(cases, panels, strict=False):
        _draw_case(axes, case)
    for axes in list(panels)[len(cases) :]:
        axes.set_axis_off()
    machine = result["machine"]
    title = f"{machine['device']}, torch {machine['torch']}, triton {machine['triton']}; commit {machine['commit']}"
    figure.suptitle(f"{title}\nmilliseconds, lower is better", x=0.01, ha="left", fontsize=10, color=INK)
    figure.savefig(path)


def _draw_case(axes: Axes, case: dict[str, Any]) -> None:
    entries = case["contenders"]
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
    axes.set_title(case["name"], loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
