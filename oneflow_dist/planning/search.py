"""The cheapest layout that fits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from typing import Literal

from oneflow_dist.bars import bar
from oneflow_dist.config import Config
from oneflow_dist.data.loader import can_share_packs
from oneflow_dist.parallel.mesh import can_deal
from oneflow_dist.planning.cluster import Cluster, Estimate, estimate
from oneflow_dist.planning.recorder import Collective
from oneflow_dist.planning.trace import Trace, fresh_processes, trace_here

Plan = tuple[Config, Trace, Estimate]
CHECKPOINTING: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")  # cheapest first


def layouts(config: Config, world_size: int, gpus_per_node: int) -> Iterator[Config]:
    """The config with every mesh that can be run.

    The tensor axis stays within a node. Copies are made of whole nodes, in powers of two.
    """
    tensor = 1
    while tensor <= min(gpus_per_node, world_size):
        replicate = 1
        while world_size % (replicate * tensor) == 0:
            shard = world_size // (replicate * tensor)
            parallel = dataclasses.replace(config.parallel, replicate=replicate, shard=shard, tensor=tensor)
            candidate = dataclasses.replace(config, parallel=parallel)
            if can_deal(candidate) and can_share_packs(candidate, replicate * shard):
                yield candidate
            if shard * tensor <= gpus_per_node:
                break
            replicate *= 2
        tensor *= 2


def search(config: Config, world_size: int, cluster: Cluster) -> list[Plan]:
    """Every layout, planned with few layers; those that fit first, the fastest of them first.

    A layout checkpoints no more activations than it has to, as each degree of it costs time.

    Raises:
        ValueError: there is no layout of so many ranks.
    """
    found = list(layouts(config, world_size, cluster.gpus_per_node))
    if not found:
        raise ValueError(
            f"--world-size: no layout of {world_size} ranks suits the model and data.packs_per_step "
            f"({config.data.packs_per_step}); name a divisor of data.packs_per_step"
        )
    with (
        fresh_processes(os.cpu_count() or 1) as pool,
        ThreadPoolExecutor(len(found)) as threads,
        bar(total=len(found), unit="layout") as shown,
    ):
        waiting = {threads.submit(plan_layout, layout, world_size, cluster, pool) for layout in found}
        plans: list[Plan] = []
        while waiting:
            done, waiting = wait(waiting, timeout=shown.mininterval, return_when=FIRST_COMPLETED)
            plans += [plan for task in done for plan in task.result()]
            shown.update(len(done))
            shown.refresh()  # a layout takes many seconds: the clock shows that it is being planned
    return sorted(plans, key=lambda plan: (not plan[2].fits, plan[2].step_seconds, plan[2].peak_bytes))


def plan_layout(config: Config, world_size: int, cluster: Cluster, pool: Executor) -> list[Plan]:
    """The plans of a layout with more and more checkpointing, until one fits."""
    plans: list[Plan] = []
    for degree in CHECKPOINTING:
        train = dataclasses.replace(config.train, activation_checkpointing=degree)
        candidate = dataclasses.replace(config, train=train)
        trace = trace_few_layers(candidate, world_size, pool)
        plans.append((candidate, trace, estimate(trace, candidate, cluster)))
        if plans[-1][2].fits:
            break
    return plans


def trace_few_layers(config: Config, world_size: int, pool: Executor) -> Trace:
    """A trace by extrapolation: all that it has is linear in the number of layers, once there are two."""
    more = config.model.num_layers - 2
    two, three = pool.map(trace_here, (with_layers(config, 2), with_layers(config, 3)), (world_size, world_size))

    def extend(few: dict[str, int], some: dict[str, int]) -> dict[str, int]:
        return {key: few.get(key, 0) + more * (some[key] - few.get(key, 0)) for key in some}

    return Trace(
        mesh=two.mesh,
        microbatches=two.microbatches,
        num_parameters=two.num_parameters + more * (three.num_parameters - two.num_parameters),
        checkpoint_bytes=two.checkpoint_bytes + more * (three.checkpoint_bytes - two.checkpoint_bytes),
        held=extend(two.held, three.held),
        peak=extend(two.peak, three.peak),
        collectives=_extend_collectives(two.collectives, three.collectives, more),
        flops=two.flops + more * (three.flops - two.flops),
    )


def _extend_collectives(two: dict[Collective, int], three: dict[Collective, int], more: int) -> dict[Collective, int]:
    """Those of each layer become more; one for all layers, as that of the gradient norm, becomes larger."""
    both = two.keys() & three.keys()
    counts = {key: two[key] + more * (three[key] - two[key]) for key in both}
    for small, large in zip(sorted(two.keys() - both), sorted(three.keys() - both), strict=True):
        num_bytes = small.num_bytes + more * (large.num_bytes - small.num_bytes)
        counts[dataclasses.replace(small, num_bytes=num_bytes)] = two[small]
    return counts


def with_layers(config: Config, num_layers: int) -> Config:
    """The config with so many layers."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=num_layers))
