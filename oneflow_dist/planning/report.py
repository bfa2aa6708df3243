"""A plan for people, and for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from oneflow_dist.config import Config
from oneflow_dist.planning.cluster import Cluster, Estimate, group_span, link_seconds
from oneflow_dist.planning.gpus import GIB
from oneflow_dist.planning.recorder import Collective
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
    replicate, shard, tensor = trace.mesh
    train, keep = config.train, config.checkpoint.keep
    size = trace.checkpoint_bytes / GIB
    return [
        f"{replicate * shard * tensor} x {cluster.gpu.name}: replicate {replicate} x shard {shard} x tensor {tensor}",
        f"{trace.num_parameters:,} parameters, {train.precision}, checkpointing {train.activation_checkpointing}",
        f"{trace.microbatches} packs of {config.data.rows_per_pack:,} rows a step and tensor group",
        f"a checkpoint takes {size:.2f} GiB, checkpoint.keep ({keep}) and the next {size * (keep + 1):.2f}",
    ]


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
    lines = [f"{'communication of a rank in a step':<48}{'count':>8}{'GiB':>10}{'seconds':>10}"]
    for (axis, kind), row in by_axis(trace, cluster).items():
        ranks, span = group_span(axis, trace.mesh)
        place = "in a node" if span <= cluster.gpus_per_node else "over the network"
        name = f"{axis} ({ranks} ranks, {place}) {kind}"
        lines.append(f"  {name:<46}{row['count']:>8}{row['bytes'] / GIB:>10.3f}{row['seconds']:>10.4f}")
    return lines


def time_lines(trace: Trace, estimate: Estimate, config: Config, cluster: Cluster) -> list[str]:
    """The time of a step with the formula that it comes from."""
    gpu, peak = cluster.gpu, f"{cluster.gpu.flops_per_second:.4g}"
    again = trace.flops / estimate.model_flops - 1.0
    links = "hidden" if config.parallel.async_tensor else "added"
    moved = "bytes (n - 1) / n, for all_reduce twice"
    rates = f"{gpu.node_bytes_per_second / 1e9:g} GB/s in a node, {gpu.network_bytes_per_second / 1e9:g} between"
    formula = f"({moved}) / ({cluster.link_efficiency} x rate) + {cluster.latency_seconds:g} each; {rates}"
    computed = f"{trace.flops:.4g} / ({peak} x {cluster.compute_efficiency})"
    return [
        f"FLOPs of a rank in a step: model {estimate.model_flops:.4g}, computed {trace.flops:.4g} ({again:+.1%})",
        f"  compute {estimate.compute_seconds:8.4f} s = {computed}",
        f"  data    {estimate.data_seconds:8.4f} s on the links of replicate and shard",
        f"  tensor  {estimate.tensor_seconds:8.4f} s on those of tensor",
        f"          links = {formula}",
        f"  step    {estimate.step_seconds:8.4f} s = max(compute, data), tensor {links}",
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
        "mesh": dict(zip(("replicate", "shard", "tensor"), trace.mesh, strict=True)),
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
        row["seconds"] += count * link_seconds(collective, trace, cluster)  # type: ignore[assignment]
    return rows


def _key(collective: Collective) -> tuple[str, str]:
    return collective.group, collective.kind
