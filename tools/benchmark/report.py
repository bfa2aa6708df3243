"""Lines of results as Markdown: what people read, made anew after every number."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Line = dict[str, Any]  # a number that was measured, or how a job ended
Columns = Mapping[str, tuple[str, str]]  # what stands above; the field of a line, and how its value is written

LARGE_PRODUCT = "large product"  # the rate that steps and kernels are compared with
RATES = ("rows_per_second", "tflops")
STEPS: Columns = {
    "rows/s": ("rows_per_second", ",.0f"),
    "documents/s": ("documents_per_second", ".1f"),
    "TFLOP/s": ("tflops", ".1f"),
    "MFU": ("mfu", ".1%"),
    "of the product": ("mfu_of_measured_matmul", ".1%"),
    "ms": ("step_ms", ".1f"),
    "peak GiB": ("peak_gib", ".1f"),
    "planned": ("planned_peak_gib", ".1f"),
}
CONTENDERS: Columns = {
    "ms": ("ms", ".3f"),
    "least": ("least_ms", ".3f"),
    "most": ("most_ms", ".3f"),
    "TFLOP/s": ("tflops", ".1f"),
    "of the product": ("share_of_product", ".1%"),
    "peak GiB": ("peak_gib", ".2f"),
}
KERNELS: Columns = {"calls": ("calls", "d"), "ms": ("ms", ".3f"), "share": ("share", ".1%")}
DEVICE: Columns = {"ms": ("ms", ".3f"), "TFLOP/s": ("tflops", ".1f"), "GB/s": ("gb_per_second", ".0f")}
CHECKS: Columns = {"error": ("error", ".1e"), "of the definition": ("error_of_definition", ".1e"), "": ("verdict", "")}
MODEL_FLOPS = (
    "Model FLOPs: products of the blocks' linear layers and of token logits forward once and backward twice, attention "
    "backward 2.5 times, as flash attention computes scores again; bidirectional attention counts every pair of rows "
    "of a document, causal attention half of them; products of adapters count, padding, embeddings, norms and times do "
    "not, nor does what activation checkpointing computes again."
)
CONVENTION = (
    f"TFLOP/s and MFU are of model FLOPs, MFU of the vendor's dense bfloat16 peak, for float8 too. {MODEL_FLOPS} Ours "
    "has logits only where a token is missing, the peer for every token; ours updates a moving average of the weights "
    "in each step, the peer has none. Planned memory is that of an eager step whose packs are full to every capacity."
)
MEDIANS = (
    "Milliseconds are medians of rounds in which all contenders took turns; errors are norms of differences from "
    "float64, relative to the norm of the result."
)


def report(lines: Sequence[Line]) -> str:
    """All that there is, in the order of its worth."""
    parts = [
        "# Measured on one GPU",
        *map(describe, of_kind(lines, "machine")),
        *_training(lines),
        *_contests(lines),
        *_kernels(lines),
        *_section("The device", make_table("", DEVICE, of_kind(lines, "rate"))),
        *_checks(lines),
        *_launches(lines),
        *_left_out(lines),
    ]
    return "\n\n".join(parts) + "\n"


def of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    """Those lines, in order."""
    return [line for line in lines if line["kind"] == kind]


def latest(lines: Sequence[Line], kind: str, group: str) -> dict[str, list[Line]]:
    """Those lines by a field; of several of one name, and dtype, the last, which replaces the others."""
    groups: dict[str, dict[str, Line]] = {}
    for line in of_kind(lines, kind):
        groups.setdefault(line[group], {})[f"{line['name']} {line.get('dtype', '')}"] = line
    return {name: list(members.values()) for name, members in groups.items()}


def large_product(lines: Sequence[Line]) -> float | None:
    """TFLOP/s of a large product, the best of its dtypes."""
    products = [rate for rate in of_kind(lines, "rate") if rate["name"].startswith(LARGE_PRODUCT)]
    return max((product["tflops"] for product in products if "tflops" in product), default=None)


def rated(lines: Sequence[Line]) -> list[Line]:
    """Training steps with their shares of the device's rates, and what was planned; None where that is not known."""
    vendor = next((machine["vendor_bf16_tflops"] for machine in of_kind(lines, "machine")), None)
    product = large_product(lines)
    plans = {plan["name"]: plan["peak_gib"] for plan in of_kind(lines, "plan")}
    return [
        {
            **step,
            "title": step["name"] + (f", {step['packs']} packs" if step["packs"] > 1 else ""),
            "mfu": step["tflops"] / vendor if vendor else None,
            "mfu_of_measured_matmul": step["tflops"] / product if product else None,
            "planned_peak_gib": plans.get(plan_of(step["name"])),
        }
        for step in of_kind(lines, "step")
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
    ratios = []
    for sequences in sorted({line["sequences"] for line in peers}) if ours else []:
        best, peer = fastest(ours), fastest([line for line in peers if line["sequences"] == sequences])
        rates = {f"{rate}_ratio": best[rate] / peer[rate] for rate in RATES}
        ratios.append({"ours": best["name"], "peer": peer["name"], "sequences": sequences, **rates})
    return ratios


def fastest(steps: Sequence[Line]) -> Line:
    """Name and mean rates of the fastest variant."""
    means = [
        {"name": name, **{rate: statistics.fmean(s[rate] for s in steps if s["name"] == name) for rate in RATES}}
        for name in sorted({line["name"] for line in steps})
    ]
    return max(means, key=lambda mean: mean["rows_per_second"])


def describe(machine: Line) -> str:
    """Device, versions, commit and date in a line that fits over a picture."""
    versions = f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['driver']}"
    return f"{machine['device']}, {versions}; commit {machine['commit'][:12]}, {machine['date'][:16]}"


def in_words(ratio: Line) -> str:
    """One of `compare`."""
    return (
        f"{ratio['ours']} against {ratio['peer']}: {ratio['rows_per_second_ratio']:.2f}x the rows per second, "
        f"{ratio['tflops_ratio']:.2f}x the FLOP rate"
    )


def make_table(head: str, columns: Columns, lines: Sequence[Line], name: Callable[[Line], str] | None = None) -> str:
    """A Markdown table, nothing where a value is not known; of what failed the reason. Empty without lines."""
    rows = [[head, *columns], ["---", *["---:"] * len(columns)]]
    for line in lines:
        values = [line.get(field) for field, _ in columns.values()]
        cells = [
            "" if value is None else format(value, style)
            for value, (_, style) in zip(values, columns.values(), strict=True)
        ]
        if "failed" in line:
            cells = [line["failed"], *[""] * (len(cells) - 1)]
        rows.append([name(line) if name else line["name"], *cells])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows) if lines else ""


def _section(title: str, *parts: str) -> list[str]:
    return [f"## {title}", *parts] if any(parts) else []


def _training(lines: Sequence[Line]) -> list[str]:
    table = make_table("step", STEPS, rated(lines), lambda step: step["title"])
    return _section("Training steps", table, *map(in_words, compare(lines)), CONVENTION) if table else []


def _contests(lines: Sequence[Line]) -> list[str]:
    product = large_product(lines)
    contests = latest(lines, "contender", "case")
    tables = [f"### {case}\n\n{_contest(contenders, product)}" for case, contenders in contests.items()]
    return _section("Contests", MEDIANS, *tables) if tables else []


def _contest(contenders: Sequence[Line], product: float | None) -> str:
    outputs = list(dict.fromkeys(name for line in contenders for name in line.get("errors", {})))
    columns = {**CONTENDERS, **{f"error {name}": (f"error {name}", ".1e") for name in outputs}}
    rows = [
        {
            **line,
            "share_of_product": line["tflops"] / product if line.get("tflops") and product else None,
            **{f"error {name}": error for name, error in line.get("errors", {}).items()},
        }
        for line in contenders
    ]
    return make_table("", columns, rows, lambda line: f"**{line['name']}**" if line["is_ours"] else line["name"])


def _kernels(lines: Sequence[Line]) -> list[str]:
    return [
        f"### Kernels of {profile['name']}: {profile['busy_ms']:.2f} of {profile['ms']:.2f} ms\n\n"
        + make_table("kernel", KERNELS, profile["kernels"], lambda kernel: f"`{kernel['name'][:80]}`")
        for profile in of_kind(lines, "kernels")
    ]


def _checks(lines: Sequence[Line]) -> list[str]:
    tables = []
    for job, checks in latest(lines, "check", "job").items():
        rows = [{**check, "verdict": "right" if check["is_right"] else "**wrong**"} for check in checks]
        table = make_table("kernel", CHECKS, rows, lambda check: f"{check['name']}, {check['dtype']}")
        tables.append(f"### {job.capitalize()}\n\n{table}")
    return _section("Numbers", *tables)


def _launches(lines: Sequence[Line]) -> list[str]:
    rows = [
        {"name": line["kernel"], "launch": launch, "ms": ms}
        for line in of_kind(lines, "launches")
        for launch, ms in line["milliseconds"].items()
    ]
    columns = {"launch": ("launch", ""), "ms": ("ms", ".3f")}
    return _section("Launches, the fastest of each kernel first", make_table("kernel", columns, rows))


def _left_out(lines: Sequence[Line]) -> list[str]:
    rows = [
        {"name": end["job"], "why": f"{end['status']}: {end['reason']}"}
        for end in of_kind(lines, "end")
        if end["status"] != "measured"
    ]
    return _section("Not measured, or not to its end", make_table("", {"why": ("why", "")}, rows))
