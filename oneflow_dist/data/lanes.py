"""Independent streams of packs. What a lane yields depends on the seed and the lane alone, not on who runs it."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, NoisySample, PackedBatch, Sample
from oneflow_dist.data.decoding import cut_window, decode_record, num_rows
from oneflow_dist.data.mixture import Source
from oneflow_dist.data.packing import choose_samples, pack, size_of
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import keyed_generator, noise_sample
from oneflow_dist.flow.schedule import KeepSchedule


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample in a lane's window: the n-th draw of a source, noised."""

    source: int
    draw: int
    noisy: NoisySample
    size: Capacity


class Lane:
    """One of the `packs_per_step` streams that a step takes one pack from.

    Of every pass over a source, shuffled by (seed, source, pass), lane g of G takes every G-th sample from the g-th on:
    over all lanes each sample comes once a pass. Its state is a count of draws per source and the draws that wait.
    """

    def __init__(
        self, index: int, config: Config, sources: tuple[Source, ...], shards: list[ShardSet], tokenizer: Tokenizer
    ):
        self.index = index
        self.config = config
        self.sources = sources
        self.shards = shards
        self.tokenizer = tokenizer
        flow, data = config.flow, config.data
        self.schedule = KeepSchedule(kind=flow.keep_schedule, exponent=flow.keep_exponent)
        self.capacity = capacity_of(config)
        self.weights = np.array([s.weight for s in sources]) / sum(s.weight for s in sources)
        self.draws = np.zeros(len(sources), dtype=np.int64)
        self.window: deque[Waiting] = deque()
        self._decode = functools.lru_cache(maxsize=data.cached_samples)(self._decode_sample)
        self._order = functools.lru_cache(maxsize=2 * len(sources))(self._shuffled)

    def next_pack(self) -> PackedBatch:
        """The next packed batch of this lane."""
        useless = 0
        while len(self.window) < self.config.data.window_samples:
            useless = 0 if self._draw() else useless + 1
            if useless > sum(map(len, self.shards)):
                raise ValueError(
                    f"{useless} samples in a row are longer than data.max_sample_rows "
                    f'({self.config.data.max_sample_rows}) and dropped; raise it or set data.overlong = "window"'
                )
        chosen = choose_samples([w.size for w in self.window], self.capacity)
        samples = [self.window[i].noisy for i in chosen]
        taken = set(chosen)
        self.window = deque(w for i, w in enumerate(self.window) if i not in taken)
        return pack(samples, self.capacity, self.config.image)

    def state(self) -> dict[str, Any]:
        """Everything that the next packs depend on, besides the config: a few integers."""
        return {"draws": self.draws.tolist(), "waiting": [[w.source, w.draw] for w in self.window]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the waiting samples are read and noised again, with the same result."""
        self.draws = np.array(state["draws"], dtype=np.int64)
        made = [(source, draw, self._make(source, draw)) for source, draw in state["waiting"]]
        self.window = deque(self._waiting(source, draw, noisy) for source, draw, noisy in made if noisy is not None)

    def _draw(self) -> bool:
        """Put one more sample in the window, from the source furthest behind its weight; False if it is dropped."""
        source = int(np.argmax(self.weights * (self.draws.sum() + 1) - self.draws))
        draw = int(self.draws[source])
        self.draws[source] += 1
        noisy = self._make(source, draw)
        if noisy is None:
            return False
        self.window.append(self._waiting(source, draw, noisy))
        return True

    def _waiting(self, source: int, draw: int, noisy: NoisySample) -> Waiting:
        return Waiting(source, draw, noisy, size_of([noisy], self.config.image))

    def _make(self, source: int, draw: int) -> NoisySample | None:
        """The n-th sample that this lane takes of a source, noised; None if it is overlong and to be dropped."""
        num_lanes = self.config.data.packs_per_step
        own = len(range(self.index, len(self.shards[source]), num_lanes))
        pass_index, place = divmod(draw, own)
        index = int(self._order(source, pass_index)[self.index + place * num_lanes])
        rng = keyed_generator(self.config.run.seed, pass_index, self.shards[source].name(index))
        sample = self._decode(source, index, self._choose_task(source, rng))
        fitting = self._fit(sample, rng)
        if fitting is None:
            return None
        return noise_sample(fitting, self.schedule, self.config.flow.condition_dropout_prob, rng)

    def _choose_task(self, source: int, rng: np.random.Generator) -> str:
        tasks = self.sources[source].tasks
        place = rng.random() * sum(tasks.values())
        for task, weight in tasks.items():
            place -= weight
            if place < 0.0:
                return task
        return task

    def _decode_sample(self, source: int, index: int, task: str) -> Sample:
        record = self.shards[source].read(index)
        return decode_record(record, task, self.sources[source].prompt, self.tokenizer, self.config.image)

    def _fit(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        data = self.config.data
        rows = num_rows(sample, self.config.image)
        too_many_images = len(sample.image_at) > data.images_per_pack
        if rows <= data.max_sample_rows and not too_many_images:
            return sample
        if data.overlong == "drop":
            return None
        if data.overlong == "window" and not too_many_images:
            return cut_window(sample, data.max_sample_rows, self.config.image, rng)
        raise ValueError(
            f"sample {sample.key} needs {rows} rows and {len(sample.image_at)} images, more than data.max_sample_rows "
            f"({data.max_sample_rows}) or data.images_per_pack ({data.images_per_pack}); raise them or set "
            'data.overlong = "drop"'
        )

    def _shuffled(self, source: int, pass_index: int) -> np.ndarray:
        rng = keyed_generator(self.config.run.seed, pass_index, f"order of {self.sources[source].name}")
        return rng.permutation(len(self.shards[source]))


def capacity_of(config: Config) -> Capacity:
    """The sizes that packs are padded to."""
    data = config.data
    return Capacity(
        rows=data.rows_per_pack,
        tokens=data.tokens_per_pack,
        bag_tokens=data.bag_tokens_per_pack,
        images=data.images_per_pack,
        sequences=data.sequences_per_pack,
    )
