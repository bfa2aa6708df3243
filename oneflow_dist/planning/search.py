"""The cheapest layout that fits."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from typing import Literal

from oneflow_dist.bars import bar
from oneflow_dist.config import Config
from oneflow_dist.data.loader import can_share_packs
from oneflow_dist.parallel.mesh import can_deal
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import Estimate, estimate
from oneflow_dist.planning.events import with_more_layers
from oneflow_dist.planning.trace import Trace, fresh_processes, trace_here

MIN_ROWS = 4096  # of a rank of a context axis: with fewer its products are small, and what it sends is not
FEW = 3  # layers: with two, memory is fullest where it is not with more
Plan = tuple[Config, Trace, Estimate]
CHECKPOINTING: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")  # cheapest first


def layouts(config: Config, world_size: int, gpus_per_node: int) -> Iterator[Config]:
    """The config with every mesh that can be run.

    Tensor and context axis stay within a node, and leave each rank MIN_ROWS. Copies are made of whole nodes, in powers
    of two.
    """
    sizes = [2**power for power in range(min(gpus_per_node, world_size).bit_length())]
    for tensor, context in itertools.product(sizes, sizes):
        in_node, rows = tensor * context, config.data.rows_per_pack // (tensor * context)
        if in_node > min(gpus_per_node, world_size) or (context > 1 and rows < MIN_ROWS):
            continue
        for replicate in sizes_of_copies(world_size, in_node, gpus_per_node):
            shard = world_size // (replicate * in_node)
            sized = {"replicate": replicate, "shard": shard, "context": context, "tensor": tensor}
            candidate = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **sized))
            if can_deal(candidate) and can_share_packs(candidate, replicate * shard):
                yield candidate


def sizes_of_copies(world_size: int, in_node: int, gpus_per_node: int) -> Iterator[int]:
    """How many copies of the model there may be."""
    replicate = 1
    while world_size % (replicate * in_node) == 0:
        yield replicate
        if world_size // replicate <= gpus_per_node:
            return
        replicate *= 2


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
    """A trace by extrapolation: all that it has is linear in the number of layers, once there are FEW."""
    more = config.model.num_layers - FEW
    if more < 2:
        return pool.submit(trace_here, config, world_size).result()
    few, some = pool.map(trace_here, (with_layers(config, FEW), with_layers(config, FEW + 1)), (world_size, world_size))

    def extend(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
        return {key: one.get(key, 0) + more * (other[key] - one.get(key, 0)) for key in other}

    return dataclasses.replace(
        few,
        num_parameters=few.num_parameters + more * (some.num_parameters - few.num_parameters),
        checkpoint_bytes=few.checkpoint_bytes + more * (some.checkpoint_bytes - few.checkpoint_bytes),
        held=extend(few.held, some.held),
        peaks={phase: extend(few.peaks[phase], some.peaks[phase]) for phase in few.peaks},
        stretches=tuple(with_more_layers(*pair, more) for pair in zip(few.stretches, some.stretches, strict=True)),
    )


def with_layers(config: Config, num_layers: int) -> Config:
    """The config with so many layers."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=num_layers))
