"""Devices, how they are joined, and how long a collective takes on a link."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oneflow_dist.planning.events import REDUCE, SWAP, Collective
from oneflow_dist.planning.gpus import GIB, Gpu

MeshShape = tuple[int, int, int, int]  # ranks along AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices, how they are joined, and what of the rates of their links a run is assumed to reach."""

    gpu: Gpu
    gpus_per_node: int = 8
    attention_flops_per_second: float | None = None  # of kernels other than those measured; see Rates.attention
    link_efficiency: float = 0.8
    # A collective passes from rank to rank: NCCL's own figures for rings of its simple protocol (its tuning.cc).
    start_seconds: float = 8.4e-6
    hop_seconds: float = 3.4e-6  # in a node
    network_hop_seconds: float = 14e-6
    reserved_bytes: float = 4 * GIB  # CUDA, NCCL and fragmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a group of ranks talks over."""

    size: int  # ranks
    nodes: int  # that they are on
    bytes_per_second: float  # that each rank gets, and sends

    @property
    def is_in_node(self) -> bool:
        return self.nodes == 1


def group_span(group: str, mesh: MeshShape) -> tuple[int, int]:
    """Ranks of a group, and how many neighbouring ranks it stretches over. Weights are sharded over shard x context."""
    replicate, shard, context, tensor = mesh
    world = replicate * shard * context * tensor
    return {
        "tensor": (tensor, tensor),
        "context": (context, context * tensor),
        "shard": (shard * context, shard * context * tensor),
        "shard_tensor": (shard * context * tensor, shard * context * tensor),
        "replicate": (replicate, world),
        "all": (world, world),
    }[group]


def link_of(group: str, mesh: MeshShape, cluster: Cluster) -> Link:
    """The link of a group: within a node its own; between nodes the network cards of all ranks that a node has of it.

    A ring goes through a node before it leaves it, and each of its ranks has a card: so as many rings as there are
    ranks in a node share the bytes.
    """
    size, span = group_span(group, mesh)
    gpu = cluster.gpu
    if span <= cluster.gpus_per_node:
        return Link(size=size, nodes=1, bytes_per_second=gpu.node_bytes_per_second)
    in_node = max(1, cluster.gpus_per_node * size // span)
    rate = min(gpu.node_bytes_per_second, in_node * gpu.network_bytes_per_second)
    return Link(size=size, nodes=math.ceil(size / in_node), bytes_per_second=rate)


def link_seconds(collective: Collective, mesh: MeshShape, cluster: Cluster) -> float:
    """Seconds of one collective of n ranks.

        bytes (n - 1) / n (twice for all_reduce) / (rate * link efficiency) + start + hops

    Rings have n - 1 hops; sums of all ranks go over nodes as trees, up and down. All-to-all sends most of its bytes out
    of the node, past the links in it: each rank has its own card alone.
    """
    link = link_of(collective.group, mesh, cluster)
    if link.size == 1:
        return cluster.start_seconds
    rate = link.bytes_per_second
    if collective.kind == SWAP and not link.is_in_node:
        rate = min(rate, cluster.gpu.network_bytes_per_second * link.nodes / (link.nodes - 1))
    passes = 2 if collective.kind == REDUCE else 1
    moved = passes * collective.num_bytes * (link.size - 1) / link.size
    hops = (link.size - link.nodes) * cluster.hop_seconds + (link.nodes - 1) * cluster.network_hop_seconds
    if collective.kind == REDUCE:
        in_node = link.size // link.nodes
        hops = 2 * (in_node - 1) * cluster.hop_seconds + 2 * math.log2(link.nodes) * cluster.network_hop_seconds
    return moved / (rate * cluster.link_efficiency) + cluster.start_seconds + hops
