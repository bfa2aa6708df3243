"""A result: the machine, the numbers with their shares of what it can do, a table and a picture of them."""

from __future__ import annotations

import datetime
import platform
import shutil
import statistics
import subprocess
import textwrap
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneflow_dist.planning.gpus import peak_flops

ROOT = Path(__file__).parents[2]
GOAL_MFU = 0.6  # of the compiled bf16 variant; a goal, not a result
OURS, FLOAT8, PEER, INK = "#2f6fb3", "#4aa5a5", "#d9822b", "#30343b"

Entry = dict[str, Any]  # of a job, as `jobs.run_jobs` makes them

CONVENTION = (
    "tflops: model FLOPs, nothing computed again counted twice; products of the blocks' linear layers and of token "
    "logits forward once and backward twice, attention backward 2.5 times; bidirectional attention counts every pair "
    "of rows of a document, causal attention half of them; padding, embeddings and norms count nothing. Ours has "
    "logits only where a token is missing (slots_with_logits_share), the peer for every token. "
    "tflops_by_its_own_formula: torchtitan's, 6 x parameters without the embedding + 12 x layers x width x length per "
    "token, no causal halving. mfu: tflops / the vendor's dense bfloat16 peak, for float8 too. "
    "mfu_of_measured_matmul: tflops / the best rate of an 8192 x 8192 x 8192 product in the same run (of a 1024 x 1024 "
    "x 1024 one on a CPU), in bfloat16 or float32, whichever is faster. "
    "Ours updates a moving average of the weights in each step, the peer has none. "
    "Planned memory is that of an eager step whose packs are full to every capacity."
)


def summarize(machine: dict[str, Any], settings: dict[str, Any], entries: list[Entry]) -> dict[str, Any]:
    """The result file's content, from what there is so far."""
    measured = [entry for entry in entries if entry["status"] == "measured"]
    kernels = next((entry["measured"] for entry in measured if entry["kind"] == "kernels"), None)
    plans = {entry["name"]: entry["measured"] for entry in measured if entry["kind"] == "plan"}
    vendor, matmul = machine["vendor_bf16_tflops"], kernels and kernels["matmul_tflops"]
    return {
        "machine": machine,
        "settings": settings,
        "convention": CONVENTION,
        "kernels": kernels,
        "launches": next((entry["measured"] for entry in measured if entry["kind"] == "tune"), None),
        "cases": [entry["measured"] for entry in measured if entry["kind"] == "case"],
        "plans": plans,
        "runs": [rated(e, vendor, matmul, plans) for e in entries if e["kind"] in ("ours", "peer")],
        "comparison": compare(measured),
        "not_measured": {entry["name"]: entry["reason"] for entry in entries if entry["status"] != "measured"},
    }


def rated(entry: Entry, vendor: float | None, matmul: float | None, plans: dict[str, Any]) -> Entry:
    """The entry with its shares of the device's rates, and what was planned; None where one side is not known."""
    if entry["status"] != "measured":
        return entry
    tflops = entry["measured"]["tflops"]
    own = entry["measured"].get("tflops_by_its_own_formula")
    return {
        **entry,
        "mfu": tflops / vendor if vendor else None,
        "mfu_by_its_own_formula": own / vendor if own and vendor else None,
        "mfu_of_measured_matmul": tflops / matmul if matmul else None,
        "planned_peak_gib": plans.get(plan_of(entry["name"]), {}).get("peak_gib"),
    }


def plan_of(name: str) -> str:
    """The name of the plan of one of our jobs: that of its precision and checkpointing, eager or compiled."""
    return name.replace("ours", "plan").replace(" compiled", "").replace(" eager", "")


def compare(measured: list[Entry]) -> dict[str, Any]:
    """Our fastest bf16 variant against the peer's fastest, for each of the peer's document lengths.

    A variant measured several times counts with its mean.
    """
    ours = [entry for entry in measured if entry["kind"] == "ours" and "train.precision=bf16" in entry["overrides"]]
    peers = [entry for entry in measured if entry["kind"] == "peer"]
    if not ours:
        return {}
    best = fastest(ours)
    comparison = {}
    for sequences in sorted({entry["sequences"] for entry in peers}):
        peer = fastest([entry for entry in peers if entry["sequences"] == sequences])
        comparison[f"{sequences} documents"] = {
            "ours": best["name"],
            "peer": peer["name"],
            "rows_per_second_ratio": best["rows_per_second"] / peer["rows_per_second"],
            "tflops_ratio": best["tflops"] / peer["tflops"],
        }
    return comparison


def fastest(entries: list[Entry]) -> dict[str, Any]:
    """Name and mean rates of the fastest variant."""
    rounds: dict[str, list[Entry]] = {}
    for entry in entries:
        rounds.setdefault(entry["name"], []).append(entry["measured"])
    means = [
        {"name": name, **{rate: statistics.fmean(m[rate] for m in numbers) for rate in ("rows_per_second", "tflops")}}
        for name, numbers in rounds.items()
    ]
    return max(means, key=lambda mean: mean["rows_per_second"])


def table(result: dict[str, Any]) -> str:
    """The training runs as lines for people."""
    head = (
        f"{'variant':<34}{'rows/s':>10}{'docs/s':>8}{'TFLOP/s':>9}{'MFU':>7}{'of matmul':>11}{'GiB':>7}{'planned':>9}"
    )
    return "\n".join([head, *(table_line(entry) for entry in result["runs"])])


def table_line(entry: Entry) -> str:
    """One run: its numbers, or why there are none."""
    if entry["status"] != "measured":
        return f"{entry['name']:<34}{entry['status']}: {entry['reason']}"
    m = entry["measured"]
    return (
        f"{entry['name']:<34}{m['rows_per_second']:>10,.0f}{m['documents_per_second']:>8.1f}{m['tflops']:>9.1f}"
        f"{_or_dash(entry['mfu'], '7.1%')}{_or_dash(entry['mfu_of_measured_matmul'], '11.1%')}"
        f"{_or_dash(m['peak_gib'], '7.1f')}{_or_dash(entry['planned_peak_gib'], '9.1f')}"
    )


def _or_dash(value: float | None, style: str) -> str:
    width = int(style.partition(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:{style}}"


def describe_machine(commit: str = "") -> dict[str, Any]:
    """Device, driver, versions, commit and date; what is not there is called "none".

    Leaves the device alone: memory that this process took would be missing where it is measured.

    Args:
        commit: of this code, where its folder is a copy without git.
    """
    name, memory, driver = describe_gpu()
    peak = peak_flops(name)
    return {
        "device": name,
        "device_memory": memory,
        "vendor_bf16_tflops": peak and peak / 1e12,
        "driver": driver,
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else "none",
        "torchtitan": version("torchtitan") if find_spec("torchtitan") else "none",
        "python": platform.python_version(),
        "commit": commit or current_commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_gpu() -> tuple[str, str, str]:
    """Name, memory and driver of the first GPU; those of the processor where there is none."""
    answer = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not answer:
        return platform.processor() or platform.machine(), "none", "none"
    name, memory, driver = answer.splitlines()[0].split(", ")
    return name, memory, driver


def current_commit(folder: Path) -> str:
    """The commit of a checkout, with "-dirty" where files differ from it; "unknown" where git cannot tell."""
    return _ask("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def _ask(*command: str) -> str:
    """What a program prints; nothing if it fails, or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


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
