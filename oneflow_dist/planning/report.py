"""A plan for people, and for programs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from oneflow_dist.config import Config
from oneflow_dist.planning.cluster import Cluster, link_of, link_seconds
from oneflow_dist.planning.estimate import Estimate
from oneflow_dist.planning.events import Collective
from oneflow_dist.planning.gpus import AXES, GIB
from oneflow_dist.planning.rates import Rates
from oneflow_dist.planning.trace import Trace

KINDS = ("parameters", "gradients", "optimizer", "average", "activations", "gathered", "batch", "temporary")


def plan_text(trace: Trace, estimate: Estimate, config: Config, cluster: Cluster) -> str:
    """The plan as a page."""
    sections = (
        what_lines(trace, config, cluster),
        memory_lines(trace, estimate, cluster),
        link_lines(trace, cluster),
        time_lines(trace, estimate, config, cluster),
    )
    return "\n\n".join("\n".join(lines) for lines in sections)


def what_lines(trace: Trace, config: Config, cluster: Cluster) -> list[str]:
    """What is planned."""
    train, keep = config.train, config.checkpoint.keep
    size = trace.checkpoint_bytes / GIB
    return [
        layout_text(trace, cluster),
        f"{trace.num_parameters:,} parameters, {train.precision}, checkpointing {train.activation_checkpointing}",
        f"{trace.microbatches} packs of {config.data.rows_per_pack:,} rows a step, each of {trace.ranks_of_pack} ranks",
        f"a checkpoint takes {size:.2f} GiB, checkpoint.keep ({keep}) and the next {size * (keep + 1):.2f}",
    ]


def layout_text(trace: Trace, cluster: Cluster) -> str:
    """How many of which devices, on which mesh."""
    sizes = dict(zip(AXES, trace.mesh, strict=True))
    return f"{math.prod(trace.mesh)} x {cluster.gpu.name}: {' x '.join(f'{axis} {sizes[axis]}' for axis in AXES)}"


def memory_lines(trace: Trace, estimate: Estimate, cluster: Cluster) -> list[str]:
    """Memory by kind, and whether it fits."""
    total, reserved = cluster.gpu.memory_bytes / GIB, cluster.reserved_bytes / GIB
    verdict = "fits" if estimate.fits else "DOES NOT FIT"
    return [
        "memory of a rank at its peak, GiB",
        *(f"  {kind:<12}{trace.peak.get(kind, 0) / GIB:10.2f}" for kind in KINDS),
        f"  {'sum':<12}{estimate.peak_bytes / GIB:10.2f} of {estimate.room_bytes / GIB:.2f}: {verdict}",
        f"  (room: {total:.2f} less {reserved:.0f} for CUDA, NCCL and fragmentation)",
    ]


def link_lines(trace: Trace, cluster: Cluster) -> list[str]:
    """Collectives by axis and kind."""
    lines = [f"{'communication of a rank in a step':<64}{'count':>8}{'GiB':>10}{'seconds':>10}"]
    for (axis, kind), row in by_axis(trace, cluster).items():
        link = link_of(axis, trace.mesh, cluster)
        place = "in a node" if link.is_in_node else f"over {link.bytes_per_second / 1e9:g} GB/s of network"
        name = f"{axis} ({link.size} ranks, {place}) {kind}"
        lines.append(f"  {name:<62}{row['count']:>8}{row['bytes'] / GIB:>10.3f}{row['seconds']:>10.4f}")
    return lines


def time_lines(trace: Trace, estimate: Estimate, config: Config, cluster: Cluster) -> list[str]:
    """The time of a step, with what it is made of."""
    peak, rates = f"{cluster.gpu.flops_per_second:.4g}", Rates.of(cluster.gpu)
    again = trace.flops / estimate.model_flops - 1.0
    products = {"fp32": rates.float32, "bf16": rates.products, "float8": rates.float8}[config.train.precision]
    reached = f"products {products / 1e12:.0f} TFLOP/s, attention up to {rates.attention / 1e12:.0f}"
    lines = [
        f"FLOPs of a rank in a step: model {estimate.model_flops:.4g}, computed {trace.flops:.4g} ({again:+.1%})",
        f"  compute {estimate.compute_seconds:8.4f} s at {reached}, memory {rates.memory / 1e12:.2f} TB/s",
    ]
    for axis, exposed in estimate.exposed_seconds.items():
        busy = estimate.busy_seconds[axis]
        lines.append(f"  exposed {exposed:8.4f} s of {busy:.4f} on the links of {axis}")
    return [
        *lines,
        f"  between {estimate.paced_seconds:8.4f} s: {rates.paced:.1%} of computing, from kernel to kernel",
        f"  step    {estimate.step_seconds:8.4f} s, the sum",
        f"  MFU     {estimate.mfu:8.1%}   = model FLOPs / (step x {peak})",
        f"  rows    {estimate.rows_per_second:8,.0f}   per second and device",
        f"  run     {run_seconds(estimate, config) / 86400:8.2f} days = train.steps ({config.train.steps:,}) x step",
    ]


def run_seconds(estimate: Estimate, config: Config) -> float:
    """Of all steps; without checkpoints, pictures, and whatever breaks."""
    return config.train.steps * estimate.step_seconds


def plan_json(trace: Trace, estimate: Estimate, config: Config, cluster: Cluster) -> dict[str, Any]:
    """The plan as numbers: bytes, seconds, FLOPs."""
    return {
        "mesh": dict(zip(AXES, trace.mesh, strict=True)),
        "parameters": trace.num_parameters,
        "microbatches": trace.microbatches,
        "activation_checkpointing": config.train.activation_checkpointing,
        "held_bytes": trace.held,
        "peak_bytes": trace.peak,
        "collectives": [
            {"kind": c.kind, "axis": c.group, "bytes": c.num_bytes, "count": count}
            for c, count in sorted(trace.collectives.items())
        ],
        "flops": trace.flops,
        "checkpoint_bytes": trace.checkpoint_bytes,
        "run_seconds": run_seconds(estimate, config),
        "estimate": {**dataclasses.asdict(estimate), "fits": estimate.fits},
        "cluster": dataclasses.asdict(cluster),
    }


def by_axis(trace: Trace, cluster: Cluster) -> dict[tuple[str, str], Counter[str]]:
    """Count, bytes and seconds of the collectives of each axis and kind."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for collective, count in sorted(trace.collectives.items(), key=lambda item: _key(item[0])):
        row = rows.setdefault(_key(collective), Counter())
        row["count"] += count
        row["bytes"] += count * collective.num_bytes
        row["seconds"] += count * link_seconds(collective, trace.mesh, cluster)  # type: ignore[assignment]
    return rows


def _key(collective: Collective) -> tuple[str, str]:
    return collective.group, collective.kind
