"""Packed batches for one rank, made ahead by worker processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.held_out import find_held_out, report_held_out
from oneflow_dist.data.identity import describe_data
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.packing import silence
from oneflow_dist.data.report import report_modalities, report_source
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.data.workers import Note, Workers
from oneflow_dist.process import process_of

LaneStates = dict[int, dict[str, Any]]
Item = tuple[int, PackedBatch | ValueError | OSError, dict[str, Any]]  # of the lane of this index, with its new state


def can_share_packs(config: Config, world_size: int) -> bool:
    """Whether `world_size` data-parallel ranks can share the packs of a step evenly."""
    return config.data.packs_per_step % world_size == 0


def packs_of_rank(config: Config, world_size: int) -> int:
    """Packs of a step that each of `world_size` data-parallel ranks computes: its own, and perhaps a silent one.

    Raises:
        ValueError: there are more ranks than packs.
    """
    packs = config.data.packs_per_step
    if world_size > packs:
        raise ValueError(
            f"data.packs_per_step ({packs}) is less than the {world_size} data-parallel ranks, which need one each; "
            f"set data.packs_per_step={world_size}, or let ranks share packs (parallel.context, parallel.tensor)"
        )
    return -(-packs // world_size)


def idle_share(config: Config, world_size: int) -> float:
    """The part of each step in which `world_size` data-parallel ranks compute silent packs."""
    packs = config.data.packs_per_step
    return 1.0 - packs / (-(-packs // world_size) * world_size)


class PackLoader:
    """An endless stream of packs for rank `rank` of `world_size`: as many in a step as any other rank has.

    The global sequence of packs depends on the config and the step alone. A rank owns the lanes rank, rank + R, ...;
    their states travel with the packs, so that a checkpoint holds what has been trained on, not what was prefetched.
    Where the packs of a step cannot be shared evenly, a rank with one lane less adds a pack that says nothing, since
    all ranks have to gather weights together.
    """

    def __init__(self, config: Config, rank: int, world_size: int, states: LaneStates | None = None):
        self.packs_per_step = packs_of_rank(config, world_size)
        sources = load_mixture(config.data.mixture)
        tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
        num_tokens = tokenizer.vocab_size + process_of(config, tokenizer.eos, tokenizer.mark).num_marks
        if num_tokens > config.model.vocab_size:
            raise ValueError(
                f"model.vocab_size ({config.model.vocab_size}) is smaller than the {num_tokens} tokens of tokenizer "
                f"({config.data.tokenizer}) and objective; raise it"
            )
        shards = [open_shards(source.name, source.shards, source.index) for source in sources]
        self.report = [report_source(source, of_source) for source, of_source in zip(sources, shards, strict=True)]
        self.report += report_modalities(config.modality, shards)
        if idle := idle_share(config, world_size):
            packs = f"data.packs_per_step ({config.data.packs_per_step}) on {world_size} data-parallel ranks"
            self.report.append(f"{packs}: {idle:.0%} of each step is spent on packs that count nothing")
        self.identity = describe_data(sources, shards, tokenizer)
        indices = range(rank, config.data.packs_per_step, world_size)
        held_out = find_held_out(config.validation.mixture, shards) if config.validation.mixture else None
        self.report += report_held_out(held_out, shards) if held_out is not None else []
        lanes = [Lane(index, config, sources, shards, tokenizer, held_out) for index in indices]
        self.states = {lane.index: states[lane.index] if states else lane.state() for lane in lanes}
        count = max(w for w in range(config.data.workers + 1) if w == 0 or len(lanes) % w == 0)
        streams = [functools.partial(_make_packs, lanes[w::count], states) for w in range(count)]
        self._packs = Workers(streams) if streams else _make_packs(lanes, states)

    def next_step(self) -> list[PackedBatch]:
        """This rank's packs of the next step, in host memory; a silent one, if there is one, comes last.

        Raises:
            ValueError: a sample cannot be used, or a worker has died.
            OSError: a shard cannot be read.
        """
        batches = []
        for _ in self.states:
            index, batch, state = next(self._packs)
            if not isinstance(batch, PackedBatch):
                raise batch
            self.states[index] = state
            batches.append(batch)
        if len(batches) < self.packs_per_step:
            batches.append(silence(batches[0]))
        return batches


def _make_packs(lanes: list[Lane], states: LaneStates | None, note: Note = lambda _: None) -> Iterator[Item]:
    """One pack of each lane in turn."""
    try:
        for lane in lanes:
            for stream in lane.streams:
                stream.note = note
            if states is not None:
                lane.load_state(states[lane.index])
        while True:
            for lane in lanes:
                yield lane.index, lane.next_pack(), lane.state()
    except (ValueError, OSError) as error:  # for the trainer, who may be another process
        yield -1, error, {}
