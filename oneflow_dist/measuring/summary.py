"""From entries of jobs to a result: shares of what the device can do, ours beside the peer, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

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
    names = {entry["name"] for entry in entries}
    means = [
        {
            "name": name,
            "rows_per_second": mean_of(entries, name, lambda e: e["measured"]["rows_per_second"]),
            "tflops": mean_of(entries, name, lambda e: e["measured"]["tflops"]),
        }
        for name in sorted(names)
    ]
    return max(means, key=lambda mean: mean["rows_per_second"])


def mean_of(entries: list[Entry], name: str, value: Callable[[Entry], float]) -> float:
    """The mean over the rounds of a variant."""
    return statistics.fmean(value(entry) for entry in entries if entry["name"] == name)


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
