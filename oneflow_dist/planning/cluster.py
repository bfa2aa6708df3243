"""How long a traced step would take on a cluster, and whether it fits: a model of few numbers, all of them shown."""

from __future__ import annotations

from dataclasses import dataclass

from oneflow_dist.config import Config
from oneflow_dist.model.flops import training_flops
from oneflow_dist.planning.gpus import GIB, Gpu
from oneflow_dist.planning.recorder import REDUCE, Collective
from oneflow_dist.planning.trace import Trace, full_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices, how they are joined, and what of their peak rates a run is assumed to reach."""

    gpu: Gpu
    gpus_per_node: int = 8
    compute_efficiency: float = 0.65  # of the peak rate, with all that is not a product
    link_efficiency: float = 0.8
    latency_seconds: float = 2e-5  # of a collective
    reserved_bytes: float = 4 * GIB  # CUDA, NCCL and fragmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a step is expected to take; seconds, and bytes of one rank."""

    compute_seconds: float
    data_seconds: float  # communication over replicate and shard, behind the computation
    tensor_seconds: float  # over the tensor axis, in its way unless parallel.async_tensor
    step_seconds: float
    model_flops: float  # of one rank's share of the step, nothing computed again
    mfu: float
    rows_per_second: float  # of one device
    peak_bytes: float
    room_bytes: float  # what the peak may be

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.room_bytes


def estimate(trace: Trace, config: Config, cluster: Cluster) -> Estimate:
    """Time and memory of a traced step on a cluster.

        compute = computed FLOPs / (peak * compute efficiency)
        link    = sum of bytes * (n - 1) / n * (2 if all_reduce) / (bandwidth * link efficiency) + latency
        step    = max(compute, data links) + tensor links
        MFU     = model FLOPs / (step * peak)

    The bandwidth is that of a node if the group of n ranks lies in one, else that of the network.
    """
    gpu = cluster.gpu
    compute = trace.flops / (gpu.flops_per_second * cluster.compute_efficiency)
    seconds = {"data": 0.0, "tensor": 0.0}
    for collective, count in trace.collectives.items():
        axis = "tensor" if collective.group == "tensor" else "data"
        seconds[axis] += count * link_seconds(collective, trace, cluster)
    exposed = 0.0 if config.parallel.async_tensor else seconds["tensor"]
    step = max(compute, seconds["data"]) + exposed
    flops = model_flops(trace, config)
    rows = trace.microbatches * config.data.rows_per_pack / trace.mesh[2]
    return Estimate(
        compute_seconds=compute,
        data_seconds=seconds["data"],
        tensor_seconds=seconds["tensor"],
        step_seconds=step,
        model_flops=flops,
        mfu=flops / (step * gpu.flops_per_second),
        rows_per_second=rows / step,
        peak_bytes=sum(trace.peak.values()),
        room_bytes=gpu.memory_bytes - cluster.reserved_bytes,
    )


def model_flops(trace: Trace, config: Config) -> float:
    """One rank's share of the closed form of a step whose packs are full of the longest samples."""
    counts = full_pack(config).counts
    pack = training_flops(
        config,
        rows=counts.rows,
        attention_pairs=counts.attention_pairs,
        head_slots=config.data.bag_tokens_per_pack,
        patches=counts.patches,
    )
    return trace.microbatches * pack / trace.mesh[2]


def link_seconds(collective: Collective, trace: Trace, cluster: Cluster) -> float:
    """Seconds of one collective on a ring."""
    size, span = group_span(collective.group, trace.mesh)
    is_in_node = span <= cluster.gpus_per_node
    gpu = cluster.gpu
    bandwidth = gpu.node_bytes_per_second if is_in_node else gpu.network_bytes_per_second
    passes = 2 if collective.kind == REDUCE else 1
    moved = passes * collective.num_bytes * (size - 1) / size
    return moved / (bandwidth * cluster.link_efficiency) + cluster.latency_seconds


def group_span(group: str, mesh: tuple[int, int, int]) -> tuple[int, int]:
    """Ranks of a group, and how many neighbouring ranks it stretches over."""
    replicate, shard, tensor = mesh
    return {
        "tensor": (tensor, tensor),
        "shard": (shard, shard * tensor),
        "shard_tensor": (shard * tensor, shard * tensor),
        "replicate": (replicate, replicate * shard * tensor),
        "all": (replicate * shard * tensor, replicate * shard * tensor),
    }[group]
