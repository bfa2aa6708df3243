"""Lines of results as Markdown: what people read, made anew after every number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tools.benchmark.schedule import Line

LARGE_PRODUCT = "large product"  # the rate that steps and kernels are compared with
RATES = ("rows_per_second", "tflops")

CONVENTION = (
    "TFLOP/s: model FLOPs, nothing computed again counted twice; products of the blocks' linear layers and of token "
    "logits forward once and backward twice, attention backward 2.5 times; bidirectional attention counts every pair "
    "of rows of a document, causal attention half of them; padding, embeddings and norms count nothing. Ours has "
    "logits only where a token is missing, the peer for every token; ours updates a moving average of the weights in "
    "each step, the peer has none. MFU: of the vendor's dense bfloat16 peak, for float8 too. Planned memory is that of "
    "an eager step whose packs are full to every capacity."
)


def report(lines: Sequence[Line]) -> str:
    """All that there is, in the order of its worth."""
    parts = [
        _machines(lines),
        _training(lines),
        *_contests(lines),
        *_kernel_times(lines),
        _rates(lines),
        *_checks(lines),
        _launches(lines),
        _counters(lines),
        _left_out(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    """Those lines, in order."""
    return [line for line in lines if line["kind"] == kind]


def by_job(lines: Sequence[Line], kind: str, key: str = "job") -> dict[str, list[Line]]:
    """Those lines by their job, or what else; of several of one name the last, which replaces the others."""
    found: dict[str, dict[str, Line]] = {}
    for line in of_kind(lines, kind):
        found.setdefault(line[key], {})[f"{line['name']} {line.get('dtype', '')}"] = line
    return {name: list(own.values()) for name, own in found.items()}


def large_product(lines: Sequence[Line]) -> float | None:
    """TFLOP/s of a large product, the best of its dtypes."""
    return max((r["tflops"] for r in of_kind(lines, "rate") if r["name"].startswith(LARGE_PRODUCT)), default=None)


def rated(lines: Sequence[Line]) -> list[Line]:
    """Training steps with their shares of the device's rates, and what was planned; None where that is not known."""
    vendor = next((m["vendor_bf16_tflops"] for m in of_kind(lines, "machine")), None)
    matmul = large_product(lines)
    plans = {plan["name"]: plan["peak_gib"] for plan in of_kind(lines, "plan")}
    return [
        {
            **line,
            "mfu": line["tflops"] / vendor if vendor else None,
            "mfu_of_measured_matmul": line["tflops"] / matmul if matmul else None,
            "planned_peak_gib": plans.get(plan_of(line["name"])),
        }
        for line in of_kind(lines, "step")
    ]


def plan_of(name: str) -> str:
    """The name of the plan of one of our variants: that of its precision and checkpointing, eager or compiled."""
    return name.replace("ours", "plan").replace(" compiled", "").replace(" eager", "")


def compare(lines: Sequence[Line]) -> list[Line]:
    """Our fastest bf16 variant against the peer's fastest, for each of the peer's document lengths, of a pack a step.

    A variant measured several times counts with its mean.
    """
    steps = [line for line in of_kind(lines, "step") if line["packs"] == 1]
    ours = [line for line in steps if line["name"].startswith("ours bf16")]
    peers = [line for line in steps if not line["name"].startswith("ours")]
    if not ours:
        return []
    best, found = fastest(ours), []
    for sequences in sorted({line["sequences"] for line in peers}):
        peer = fastest([line for line in peers if line["sequences"] == sequences])
        ratios = {f"{rate}_ratio": best[rate] / peer[rate] for rate in RATES}
        found.append({"ours": best["name"], "peer": peer["name"], "sequences": sequences, **ratios})
    return found


def fastest(steps: Sequence[Line]) -> Line:
    """Name and mean rates of the fastest variant."""
    names = {line["name"] for line in steps}
    means = [
        {"name": name, **{rate: statistics.fmean(s[rate] for s in steps if s["name"] == name) for rate in RATES}}
        for name in sorted(names)
    ]
    return max(means, key=lambda mean: mean["rows_per_second"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def number(value: float | None, style: str) -> str:
    """Nothing where it is not known."""
    return "" if value is None else format(value, style)


def describe(machine: Line) -> str:
    """Device, versions, commit and date in a line."""
    versions = f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['driver']}"
    return f"{machine['device']}, {versions}; commit {machine['commit']}, {machine['date']}"


def in_words(ratio: Line) -> str:
    """One of `compare`."""
    return (
        f"{ratio['ours']} against {ratio['peer']}: {ratio['rows_per_second_ratio']:.2f}x the rows per second, "
        f"{ratio['tflops_ratio']:.2f}x the FLOP rate"
    )


def _machines(lines: Sequence[Line]) -> str:
    return "\n\n".join(["# Measured on one GPU", *map(describe, of_kind(lines, "machine"))])


def _training(lines: Sequence[Line]) -> str:
    head = ["step", "rows/s", "documents/s", "TFLOP/s", "MFU", "of the product", "ms", "peak GiB", "planned"]
    rows = [
        [
            step["name"] + (f", {step['packs']} packs" if step["packs"] > 1 else ""),
            f"{step['rows_per_second']:,.0f}",
            f"{step['documents_per_second']:.1f}",
            f"{step['tflops']:.1f}",
            number(step["mfu"], ".1%"),
            number(step["mfu_of_measured_matmul"], ".1%"),
            f"{step['step_ms']:.1f}",
            number(step["peak_gib"], ".1f"),
            number(step["planned_peak_gib"], ".1f"),
        ]
        for step in rated(lines)
    ]
    if not rows:
        return ""
    return "\n\n".join(["## Training steps", table(head, rows), *map(in_words, compare(lines)), CONVENTION])


def _contests(lines: Sequence[Line]) -> list[str]:
    matmul = large_product(lines)
    explained = (
        "Milliseconds are medians of rounds in which all contenders took turns; errors are norms of differences from "
        "float64, relative to the norm of the result."
    )
    parts = [f"### {case}\n\n{_contest(own, matmul)}" for case, own in by_job(lines, "contender", "case").items()]
    return [f"## Contests\n\n{explained}", *parts] if parts else []


def _contest(contenders: Sequence[Line], matmul: float | None) -> str:
    outputs = list(dict.fromkeys(name for entry in contenders for name in entry.get("errors", {})))
    head = [
        "",
        "ms",
        "least to most",
        "TFLOP/s",
        "of the product",
        "GiB/s",
        "peak GiB",
        *(f"error {n}" for n in outputs),
    ]
    return table(head, [_contender(entry, outputs, matmul) for entry in contenders])


def _contender(entry: Line, outputs: Sequence[str], matmul: float | None) -> list[str]:
    name = f"**{entry['name']}**" if entry["is_ours"] else entry["name"]
    if "failed" in entry:
        return [name, entry["failed"], *[""] * (5 + len(outputs))]
    low, high = entry["ms_range"]
    tflops = entry["tflops"]
    return [
        name,
        f"{entry['ms']:.3f}",
        f"{low:.3f} to {high:.3f}",
        number(tflops, ".1f"),
        number(tflops / matmul if tflops and matmul else None, ".1%"),
        number(entry["gib_per_second"], ".0f"),
        number(entry["peak_gib"], ".2f"),
        *(number(entry["errors"].get(output), ".1e") for output in outputs),
    ]


def _kernel_times(lines: Sequence[Line]) -> list[str]:
    head = ["kernel", "calls", "ms", "share", "GB", "GB/s"]
    parts = []
    for profile in of_kind(lines, "kernels"):
        if "failed" in profile:
            parts.append(f"### Kernels of {profile['name']}\n\n{profile['failed']}")
            continue
        rows = [_kernel(kernel) for kernel in profile["kernels"]]
        title = f"### Kernels of {profile['name']}: {profile['busy_ms']:.2f} of {profile['ms']:.2f} ms"
        parts.append(f"{title}\n\n{table(head, rows)}")
    return parts


def _kernel(kernel: Line) -> list[str]:
    size = kernel["gb"]
    rate = None if size is None else size / kernel["ms"] * 1e3
    numbers = f"{kernel['calls']}", f"{kernel['ms']:.3f}", f"{kernel['share']:.1%}"
    return [f"`{kernel['name'][:80]}`", *numbers, number(size, ".3f"), number(rate, ".0f")]


def _rates(lines: Sequence[Line]) -> str:
    rates = of_kind(lines, "rate")
    rows = [
        [
            r["name"],
            r.get("failed") or number(r["ms"], ".3f"),
            number(r.get("tflops"), ".1f"),
            number(r.get("gb_per_second"), ".0f"),
        ]
        for r in rates
    ]
    return f"## The device\n\n{table(['', 'ms', 'TFLOP/s', 'GB/s'], rows)}" if rows else ""


def _checks(lines: Sequence[Line]) -> list[str]:
    head = ["kernel", "dtype", "error", "of the definition", ""]
    parts = [
        f"### {job.capitalize()}\n\n{table(head, [_check(c) for c in own])}"
        for job, own in by_job(lines, "check").items()
    ]
    return ["## Numbers", *parts] if parts else []


def _check(check: Line) -> list[str]:
    if "failed" in check:
        return [check["name"], check["dtype"], check["failed"], "", "**failed**"]
    errors = f"{check['error']:.1e}", f"{check['error_of_definition']:.1e}"
    return [check["name"], check["dtype"], *errors, "right" if check["is_right"] else "**wrong**"]


def _launches(lines: Sequence[Line]) -> str:
    rows = [
        [line["kernel"], launch, f"{ms:.3f}"]
        for line in of_kind(lines, "launches")
        for launch, ms in line["milliseconds"].items()
    ]
    return f"## Launches, the fastest of each kernel first\n\n{table(['kernel', 'launch', 'ms'], rows)}" if rows else ""


def _counters(lines: Sequence[Line]) -> str:
    counted = of_kind(lines, "counters")
    names = list(dict.fromkeys(name for line in counted for name in line["counters"]))
    rows = [[f"`{line['kernel']}`", *(line["counters"].get(name, "") for name in names)] for line in counted]
    return f"## Counters, the slowest kernel first\n\n{table(['kernel', *names], rows)}" if rows else ""


def _left_out(lines: Sequence[Line]) -> str:
    rows: list[list[Any]] = [
        [end["job"], f"{end['status']}: {end['reason']}"]
        for end in of_kind(lines, "end")
        if end["status"] != "measured"
    ]
    return f"## Not measured, or not to its end\n\n{table(['', 'why'], rows)}" if rows else ""
