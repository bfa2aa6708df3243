"""What a context axis is worth to long documents: memory, waiting and MFU of a rank, by its size."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import Estimate, estimate
from oneflow_dist.planning.gpus import GIB, GPUS
from oneflow_dist.planning.search import trace_few_layers
from oneflow_dist.planning.trace import Trace, fresh_processes
from tools.benchmark.drawing import INK

ROWS, WORLD = 131072, 64  # of a document, and of devices
# FlashAttention 3 on an H100, d = 128, 16k rows: 648 TFLOP/s forward and 561 backward, which takes 2.5 times as many
# FLOPs (arXiv:2407.08608, figures 5 and 6).
FASTER = 3.5 / (1.0 / 648e12 + 2.5 / 561e12)
COLUMNS = (
    *("context", "shard", "GiB at the peak", "fits", "s a step", "rows/s, GPU", "waits for context", "for shard"),
    *("MFU", f"at {FASTER / 1e12:.0f}"),
)
SIZES = (1, 2, 4, 8, 16, 32)
KINDS = {  # of memory, and their colours
    "parameters": "#123a68",
    "optimizer": "#2f6fb2",
    "average": "#7fb0dd",
    "gathered": "#2a9d6f",
    "activations": "#d98324",
    "temporary": "#b8476b",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One size of the axis."""

    context: int
    trace: Trace
    estimate: Estimate
    faster: Estimate  # with attention at the rate of FASTER

    @property
    def exposed(self) -> dict[str, float]:
        """Shares of a step in which the device waits for an axis."""
        return {axis: value / self.estimate.step_seconds for axis, value in self.estimate.exposed_seconds.items()}


def config_of(context: int, root: Path, overrides: Sequence[str] = ()) -> Config:
    """8B on packs of one document, as many packs as there are groups of ranks: one microbatch each."""
    rooms = (f"data.{name}={ROWS}" for name in ("rows_per_pack", "tokens_per_pack", "bag_tokens_per_pack"))
    return load_config(
        root / "configs" / "oneflow_8b_long.toml",
        [
            *rooms,
            f"data.max_sample_rows={ROWS}",
            f"data.packs_per_step={WORLD // context}",
            f"parallel.context={context}",
            *overrides,
        ],
    )


def plan(sizes: Sequence[int], root: Path, pool: Executor, overrides: Sequence[str] = ()) -> list[Planned]:
    """On H100s; the weights are sharded over all ranks."""
    configs = [config_of(size, root, overrides) for size in sizes]
    with ThreadPoolExecutor(len(sizes)) as threads:
        traces = [*threads.map(lambda config: trace_few_layers(config, WORLD, pool), configs)]
    cluster = Cluster(gpu=GPUS["h100-80gb"])
    faster = dataclasses.replace(cluster, attention_flops_per_second=FASTER)
    return [
        Planned(
            context=size,
            trace=trace,
            estimate=estimate(trace, config, cluster),
            faster=estimate(trace, config, faster),
        )
        for size, config, trace in zip(sizes, configs, traces, strict=True)
    ]


def page(found: Sequence[Planned]) -> str:
    """All sizes in one table."""
    lines = [
        f"# 8B on documents of {ROWS:,} rows, {WORLD} H100",
        "",
        "Made by `python -m tools.comparison.plans contexts docs/results`: plans, by the rates of `oneflow plan`. The",
        f"last column has attention at {FASTER / 1e12:.0f} TFLOP/s, as FlashAttention 3 is published with, in place of",
        "the 334 of the kernels that were measured here.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in found:
        own, exposed = each.estimate, each.exposed
        lines.append(
            f"| {each.context} | {each.trace.mesh[1]} | {own.peak_bytes / GIB:.1f} | {'yes' if own.fits else 'no'} "
            f"| {own.step_seconds:.2f} | {own.rows_per_second:,.0f} | {exposed.get('context', 0.0):.1%} "
            f"| {exposed.get('shard', 0.0):.1%} | {own.mfu:.1%} | {each.faster.mfu:.1%} |"
        )
    return "\n".join([*lines, ""])


def draw(found: Sequence[Planned]) -> Figure:
    """Memory by kind for each size, and the room that there is; MFU above the bars."""
    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
    panel = figure.add_subplot()
    places = range(len(found))
    below = [0.0] * len(found)
    for kind, colour in KINDS.items():
        sizes = [each.trace.peak.get(kind, 0) / GIB for each in found]
        panel.bar(places, sizes, bottom=below, color=colour, label=kind, width=0.62)
        below = [low + size for low, size in zip(below, sizes, strict=True)]
    room = found[0].estimate.room_bytes / GIB
    panel.axhline(room, color="#d62828", linewidth=1.2)
    panel.annotate(f"room of an H100: {room:.1f}", (len(found) - 0.55, room), va="bottom", ha="right", color="#d62828")
    for place, height, each in zip(places, below, found, strict=True):
        panel.annotate(
            f"{height:,.0f} GiB\nMFU {each.estimate.mfu:.0%}, or {each.faster.mfu:.0%}",
            (place, height),
            ha="center",
            va="bottom",
            xytext=(0, 3),
            textcoords="offset points",
        )
    panel.set_xticks(places, [str(each.context) for each in found])
    panel.set(xlabel="ranks of the context axis", ylabel="GiB of a rank at its peak")
    panel.margins(y=0.12)
    panel.legend(frameon=False, ncols=2)
    panel.spines[["top", "right"]].set_visible(False)
    title = f"8B, documents of {ROWS:,} rows, {WORLD} H100: memory of a rank; MFU, or that of FlashAttention 3"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    return figure


def write(folder: Path) -> str:
    """Plan all sizes, leave contexts.json, .md and .png in a folder, and return the page."""
    with fresh_processes(os.cpu_count() or 1) as pool:
        found = plan(SIZES, Path(__file__).parents[2], pool)
    folder.mkdir(parents=True, exist_ok=True)
    table = [
        {
            "context": each.context,
            "peak_bytes": each.trace.peak,
            **dataclasses.asdict(each.estimate),
            "faster_mfu": each.faster.mfu,
        }
        for each in found
    ]
    (folder / "contexts.json").write_text(json.dumps(table, indent=1) + "\n")
    (folder / "contexts.md").write_text(page(found))
    draw(found).savefig(folder / "contexts.png")
    return page(found)
