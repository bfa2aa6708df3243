"""Packed batches for one rank, made ahead by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer

LaneStates = dict[int, dict[str, Any]]


def can_share_packs(config: Config, world_size: int) -> bool:
    """Whether `world_size` data-parallel ranks can share the packs of a step evenly."""
    return config.data.packs_per_step % world_size == 0


def packs_of_rank(config: Config, world_size: int) -> int:
    """Packs of a step for each of `world_size` data-parallel ranks.

    Raises:
        ValueError: the ranks cannot share the packs of a step evenly.
    """
    packs = config.data.packs_per_step
    if not can_share_packs(config, world_size):
        raise ValueError(
            f"data.packs_per_step ({packs}) is not a multiple of the {world_size} data-parallel ranks; "
            f"set data.packs_per_step={world_size * max(1, packs // world_size)}"
        )
    return packs // world_size


class PackLoader:
    """An endless stream of packs for rank `rank` of `world_size`: `packs_per_step / world_size` for every step.

    The global sequence of packs depends on the config and the step alone. A rank owns the lanes rank, rank + R, ...;
    their states travel with the packs, so that a checkpoint holds what has been trained on, not what was prefetched.
    """

    def __init__(self, config: Config, rank: int, world_size: int, states: LaneStates | None = None):
        self.packs_per_step = packs_of_rank(config, world_size)
        sources = load_mixture(config.data.mixture)
        tokenizer = load_tokenizer(config.data.tokenizer)
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ValueError(
                f"model.vocab_size ({config.model.vocab_size}) is smaller than the tokenizer's {tokenizer.vocab_size} "
                f"({config.data.tokenizer}); raise it"
            )
        shards = [open_shards(source.name, source.shards, source.index) for source in sources]
        indices = range(rank, config.data.packs_per_step, world_size)
        lanes = [Lane(index, config, sources, shards, tokenizer) for index in indices]
        self.states = {lane.index: states[lane.index] if states else lane.state() for lane in lanes}
        stream = _LaneStream(lanes, states)
        workers = max(w for w in range(config.data.workers + 1) if w == 0 or len(lanes) % w == 0)
        self._packs = iter(
            DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)
        )

    def next_step(self, device: torch.device) -> list[PackedBatch]:
        """This rank's packs of the next step.

        Raises:
            ValueError: a sample cannot be used.
        """
        batches = []
        for _ in range(self.packs_per_step):
            index, batch, state = next(self._packs)
            if isinstance(batch, ValueError):
                raise batch
            self.states[index] = state
            batches.append(batch.to(device))
        return batches


class _LaneStream(IterableDataset):  # type: ignore[type-arg]
    """Takes one pack of each lane in turn; several workers share the lanes so that the order stays the same."""

    def __init__(self, lanes: list[Lane], states: LaneStates | None):
        self.lanes = lanes
        self.states = states

    def __iter__(self) -> Iterator[tuple[int, PackedBatch | ValueError, dict[str, Any]]]:
        worker = get_worker_info()
        lanes = self.lanes[worker.id :: worker.num_workers] if worker else self.lanes
        try:
            for lane in lanes:
                if self.states is not None:
                    lane.load_state(self.states[lane.index])
            while True:
                for lane in lanes:
                    yield lane.index, lane.next_pack(), lane.state()
        except ValueError as error:  # handed to the trainer as it is: a worker would wrap it in its traceback
            yield -1, error, {}
