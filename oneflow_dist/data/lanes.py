"""Independent streams of packs. What a lane yields depends on the seed and the lane alone, not on who runs it."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, NoisySample, PackedBatch
from oneflow_dist.data.choosing import choose_samples
from oneflow_dist.data.held_out import HeldOut
from oneflow_dist.data.mixture import Source
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.streams import SourceStream, capacity_of, read_document
from oneflow_dist.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample in a lane's window: the n-th draw of a source, noised."""

    source: int
    draw: int
    noisy: NoisySample
    size: Capacity


class Lane:
    """One of the `packs_per_step` streams that a step takes one pack from.

    Over all lanes each sample of a source comes once a pass, see `data/order.py`. The lane's state is two counts per
    source, how many samples it has looked at and how many of them it used, two sums over what it drew, and the draws
    that wait: a few kilobytes.
    """

    def __init__(
        self,
        index: int,
        config: Config,
        sources: tuple[Source, ...],
        shards: list[ShardSet],
        tokenizer: Tokenizer,
        held_out: HeldOut | None = None,
    ):
        self.index = index
        self.window_samples = config.data.window_samples
        self.is_balanced = config.data.packing == "balanced"
        self.normalize = config.flow.normalize
        self.sees = config.sees
        self.capacity = capacity_of(config)
        read = functools.lru_cache(maxsize=config.data.cached_samples)(read_document)  # one cache for all sources
        self.streams = [
            SourceStream(source, of_source, index, config, tokenizer, read, held_out)
            for source, of_source in zip(sources, shards, strict=True)
        ]
        self.weights = np.array([s.weight for s in sources]) / sum(s.weight for s in sources)
        self.used = np.zeros(len(sources), dtype=np.int64)
        self.window: deque[Waiting] = deque()
        self.rows = self.pairs = 0  # of all that was drawn; pairs of a row and a key are squared rows

    def next_pack(self) -> PackedBatch:
        """The next packed batch of this lane."""
        while len(self.window) < self.window_samples:
            self.draw()
        row_pairs = self.pairs / self.rows if self.is_balanced else None
        chosen = choose_samples([w.size for w in self.window], self.capacity, row_pairs)
        samples = [self.window[i].noisy for i in chosen]
        taken = set(chosen)
        self.window = deque(w for i, w in enumerate(self.window) if i not in taken)
        return pack(samples, self.capacity, self.normalize, self.sees)

    def state(self) -> dict[str, Any]:
        """Everything that the next packs depend on, besides the config: names, weights and a few integers."""
        return {
            "sources": [stream.source.name for stream in self.streams],
            "weights": self.weights.tolist(),
            "draws": [stream.draws for stream in self.streams],
            "used": self.used.tolist(),
            "drawn": [self.rows, self.pairs],
            "waiting": [[w.source, w.draw] for w in self.window],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the waiting samples are read and noised again, with the same result.

        Sources are known by their names: one that is gone takes its waiting samples along, a new one begins. Where
        weights have changed they hold from now on: counts start anew, so that nothing is made up for.
        """
        names = [stream.source.name for stream in self.streams]
        weights = dict(zip(names, self.weights.tolist(), strict=True))
        is_same = weights == dict(zip(state["sources"], state["weights"], strict=True))
        number_of = {name: number for number, name in enumerate(names)}
        numbers = [number_of.get(name) for name in state["sources"]]  # ours, of the sources that the state speaks of
        for number, draws, used in zip(numbers, state["draws"], state["used"], strict=True):
            if number is not None:
                self.streams[number].draws, self.used[number] = draws, used if is_same else 0
        self.window.clear()
        self.rows = self.pairs = 0
        for old, draw in state["waiting"]:
            number = numbers[old]
            if number is not None and (noisy := self.streams[number].sample_at(draw)) is not None:
                self._wait(number, draw, noisy)
        if is_same:  # else, and in states of version 0.1, the sums begin with what waits
            self.rows, self.pairs = state.get("drawn", (self.rows, self.pairs))

    def draw(self) -> None:
        """Put one more sample in the window, from the source furthest behind its weight."""
        number = int(np.argmax(self.weights * (self.used.sum() + 1) - self.used))
        draw, noisy = next(self.streams[number])
        self.used[number] += 1
        self._wait(number, draw, noisy)

    def _wait(self, source: int, draw: int, noisy: NoisySample) -> None:
        size = size_of([noisy])
        self.rows += size.rows
        self.pairs += size.rows**2
        self.window.append(Waiting(source, draw, noisy, size))
