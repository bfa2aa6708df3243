"""Independent streams of packs. What a lane yields depends on the seed and the lane alone, not on who runs it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, Document, NoisySample, PackedBatch, Sample
from oneflow_dist.data.decoding import decode_record, list_images, read_fields
from oneflow_dist.data.mixture import Source
from oneflow_dist.data.order import make_order
from oneflow_dist.data.packing import choose_samples, pack, size_of
from oneflow_dist.data.samples import LEFT_OUT, cut_window, make_sample, num_rows
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import keyed_generator, noise_sample, set_key
from oneflow_dist.flow.schedule import KeepSchedule

LEFT_OUT_IN_A_ROW = 100_000  # so many samples of a source: its filters must be a mistake


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
    source, how many samples it has looked at and how many of them it used, and the draws that wait: a few kilobytes.
    """

    def __init__(
        self, index: int, config: Config, sources: tuple[Source, ...], shards: list[ShardSet], tokenizer: Tokenizer
    ):
        self.index = index
        self.config = config
        self.sources = sources
        self.shards = [s.for_lane() for s in shards]
        self.tokenizer = tokenizer
        flow, data = config.flow, config.data
        self.schedule = KeepSchedule(kind=flow.keep_schedule, exponent=flow.keep_exponent)
        self.capacity = capacity_of(config)
        self.prompts = [tokenizer.encode(source.prompt) for source in sources]
        self.weights = np.array([s.weight for s in sources]) / sum(s.weight for s in sources)
        self.orders = [make_order(s, config.run.seed, index, data.packs_per_step) for s in self.shards]
        self.draws = np.zeros(len(sources), dtype=np.int64)
        self.used = np.zeros(len(sources), dtype=np.int64)
        self.window: deque[Waiting] = deque()
        self.note: Callable[[str], None] = lambda _: None  # is told each sample before it is read
        self._rng = keyed_generator(config.run.seed, 0, "")  # given the key of each sample in turn
        self._read = functools.lru_cache(maxsize=data.cached_samples)(self._read_document)

    def next_pack(self) -> PackedBatch:
        """The next packed batch of this lane."""
        while len(self.window) < self.config.data.window_samples:
            self._draw()
        chosen = choose_samples([w.size for w in self.window], self.capacity)
        samples = [self.window[i].noisy for i in chosen]
        taken = set(chosen)
        self.window = deque(w for i, w in enumerate(self.window) if i not in taken)
        return pack(samples, self.capacity, self.config.flow.normalize)

    def state(self) -> dict[str, Any]:
        """Everything that the next packs depend on, besides the config: names, weights and a few integers."""
        return {
            "sources": [source.name for source in self.sources],
            "weights": self.weights.tolist(),
            "draws": self.draws.tolist(),
            "used": self.used.tolist(),
            "waiting": [[w.source, w.draw] for w in self.window],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the waiting samples are read and noised again, with the same result.

        Sources are known by their names: one that is gone takes its waiting samples along, a new one begins. Where
        weights have changed they hold from now on: counts start anew, so that nothing is made up for.
        """
        place_of = {source.name: place for place, source in enumerate(self.sources)}
        places = [place_of.get(name) for name in state["sources"]]  # of the sources that the state speaks of
        weights = dict(zip((source.name for source in self.sources), self.weights.tolist(), strict=True))
        is_same = weights == dict(zip(state["sources"], state["weights"], strict=True))
        for place, draws, used in zip(places, state["draws"], state["used"], strict=True):
            if place is not None:
                self.draws[place], self.used[place] = draws, used if is_same else 0
        waiting = [(place, draw) for old, draw in state["waiting"] if (place := places[old]) is not None]
        made = [(place, draw, self._make(place, draw)) for place, draw in waiting]
        self.window = deque(_waiting(place, draw, noisy) for place, draw, noisy in made if noisy is not None)

    def _draw(self) -> None:
        """Put one more sample in the window, from the source furthest behind its weight."""
        source = int(np.argmax(self.weights * (self.used.sum() + 1) - self.used))
        noisy, tries = None, 0
        while noisy is None:
            if tries > min(len(self.shards[source]), LEFT_OUT_IN_A_ROW):
                raise ValueError(
                    f"source {self.sources[source].name}: {tries} samples in a row are left out, by its filters, "
                    f"max_images, or because they are longer than data.max_sample_rows "
                    f"({self.config.data.max_sample_rows}) or have more than data.images_per_pack "
                    f'({self.config.data.images_per_pack}) images; change those or set data.overlong = "window"'
                )
            draw = int(self.draws[source])
            self.draws[source] += 1
            noisy = self._make(source, draw)
            tries += 1
        self.used[source] += 1
        self.window.append(_waiting(source, draw, noisy))

    def _make(self, source: int, draw: int) -> NoisySample | None:
        """The n-th sample that this lane takes of a source, noised; None if it is left out."""
        pass_index, index = self.orders[source].sample_at(draw)
        rng = self._rng
        name = self.shards[source].name(index)
        self.note(name)
        set_key(rng, self.config.run.seed, pass_index, name)
        entry = self.sources[source]
        task, caption = _choose(entry.tasks, rng), _choose(entry.captions, rng)
        document = self._read(source, index, caption, LEFT_OUT.get(task, ""))
        if document is None:
            return None
        sample = make_sample(document, task, self.prompts[source], self.tokenizer, self.config.image, rng)
        fitting = self._fit(sample, rng)
        if fitting is None:
            return None
        return noise_sample(fitting, self.schedule, self.config.flow.condition_dropout_prob, rng)

    def _read_document(self, source: int, index: int, caption: str, without: str) -> Document | None:
        """A sample of a source, what its task wants of it decoded; None if its filters or `max_images` leave it out."""
        entry, record = self.sources[source], self.shards[source].read(index)
        fields = read_fields(record)
        if not all(rule.passes(fields) for rule in entry.filters):
            return None
        if entry.max_images is not None and len(list_images(record)) > entry.max_images:
            return None
        return decode_record(record, fields, caption, entry.reading, self.tokenizer, self.config.image, without)

    def _fit(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        data = self.config.data
        rows, images, patches = num_rows(sample), len(sample.images), len(sample.images.patches)
        too_many_images = images > self.capacity.images or patches > self.capacity.patches
        if rows <= data.max_sample_rows and not too_many_images:
            return sample
        if data.overlong == "drop":
            return None
        if data.overlong == "window" and not too_many_images:
            return cut_window(sample, data.max_sample_rows, rng)
        raise ValueError(
            f"sample {sample.key} needs {rows} rows and {images} images of {patches} patches, more than "
            f"data.max_sample_rows ({data.max_sample_rows}) or data.images_per_pack ({data.images_per_pack}, of "
            f'{self.capacity.patches} patches); raise them or set data.overlong = "drop"'
        )


def capacity_of(config: Config) -> Capacity:
    """The sizes that packs are padded to."""
    data = config.data
    return Capacity(
        rows=data.rows_per_pack,
        tokens=data.tokens_per_pack,
        bag_tokens=data.bag_tokens_per_pack,
        images=data.images_per_pack,
        patches=data.images_per_pack * config.image.num_rows,
        sequences=data.sequences_per_pack,
    )


def _waiting(source: int, draw: int, noisy: NoisySample) -> Waiting:
    return Waiting(source, draw, noisy, size_of([noisy]))


def _choose(weights: dict[str, float], rng: np.random.Generator) -> str:
    """One of the keys, with a probability in proportion to its weight."""
    place = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        place -= weight
        if place < 0.0:
            return choice
    return choice
