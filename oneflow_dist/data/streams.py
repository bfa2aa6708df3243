"""The samples that one lane takes of one source, each read, made and noised by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, Document, NoisySample, Sample
from oneflow_dist.data.decoding import decode_record, list_pieces, read_fields
from oneflow_dist.data.excerpts import cut_window, leave_holes
from oneflow_dist.data.held_out import HeldOut
from oneflow_dist.data.mixture import Source
from oneflow_dist.data.order import make_order
from oneflow_dist.data.samples import LEFT_OUT, make_sample
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import keyed_generator, set_key
from oneflow_dist.modality import GIVEN
from oneflow_dist.process import process_of

LEFT_OUT_IN_A_ROW = 100_000  # so many samples of a source: its filters must be a mistake


class SourceStream:
    """An endless stream of (draw, noisy sample); `draws` is how many samples of the source it has looked at."""

    def __init__(
        self,
        source: Source,
        shards: ShardSet,
        lane: int,
        config: Config,
        tokenizer: Tokenizer,
        read: Read,
        held_out: HeldOut | None = None,
    ):
        self.source = source
        self.held_out = held_out
        self.shards = shards.for_lane()
        self.config = config
        self.tokenizer = tokenizer
        self.read = read  # `read_document`, or a cache of it
        self.order = make_order(self.shards, config.run.seed, lane, config.data.packs_per_step)
        self.prompt = tokenizer.encode(source.prompt)
        self.process = process_of(config, tokenizer.eos, tokenizer.mark)
        _check_tasks(source, self.process.refused_tasks, config)
        self.capacity = capacity_of(config)
        self.draws = 0
        self.note: Callable[[str], None] = lambda _: None  # is told each sample before it is read
        self._rng = keyed_generator(config.run.seed, 0, "")  # given the key of each sample in turn

    def __next__(self) -> tuple[int, NoisySample]:
        """The next sample that is not left out, and its draw.

        Raises:
            ValueError: a sample cannot be used, or so many in a row are left out that it must be a mistake.
        """
        most = 1 + min(len(self.shards), LEFT_OUT_IN_A_ROW)
        for _ in range(most):
            draw = self.draws
            self.draws += 1
            if (noisy := self.sample_at(draw)) is not None:
                return draw, noisy
        data = self.config.data
        raise ValueError(
            f"source {self.source.name}: {most} samples in a row are left out, by its filters, max_images, as held out "
            f"(validation.mixture), or because they are longer than data.max_sample_rows ({data.max_sample_rows}) or "
            f'have more than modality.*.per_pack pieces; change those or set data.overlong = "window"'
        )

    def sample_at(self, draw: int) -> NoisySample | None:
        """The sample of the n-th draw, noised; None if it is left out."""
        sample = self.clean_sample_at(draw)
        return None if sample is None else self.process.noise(sample, self._rng)

    def clean_sample_at(self, draw: int) -> Sample | None:
        """The same before noising."""
        config, source, rng = self.config, self.source, self._rng
        pass_index, index = self.order.sample_at(draw)
        key = self.shards.name(index)
        self.note(key)
        set_key(rng, config.run.seed, pass_index, key)
        task, caption = _choose(source.tasks, rng), _choose(source.captions, rng)
        given = source.given.get(task, GIVEN[0])
        document = self.read(self, index, caption, LEFT_OUT.get(task, ""), given != GIVEN[0])
        if document is None:
            return None
        own = (self.prompt, self.tokenizer, config.modality, rng)
        sample = self._fit(make_sample(document, task, given, *own, config.data.block_rows))
        if sample is None:
            return None
        return self._fit(self.process.prepare(leave_holes(sample, rng) if task == "infill" else sample))

    def _fit(self, sample: Sample) -> Sample | None:
        """See `fit_sample`; what an objective adds to a sample has to fit, too."""
        data = self.config.data
        return fit_sample(sample, data.max_sample_rows, self.capacity, data.overlong, self._rng)


def _check_tasks(source: Source, refused: tuple[str, ...], config: Config) -> None:
    if "blocks" in source.tasks and not config.data.block_rows:
        raise ValueError(
            f"data.block_rows: is 0, but source {source.name} has the task blocks; say how many rows a block may have, "
            "as 64"
        )
    for task in refused:
        if task in source.tasks:
            raise ValueError(
                f"data.mixture: source {source.name} has the task {task}, which a model cannot learn whose "
                f'objective.kind is "{config.objective.kind}"; give the source other tasks'
            )


Read = Callable[[SourceStream, int, str, str, bool], Document | None]


def read_document(stream: SourceStream, index: int, caption: str, without: str, with_features: bool) -> Document | None:
    """A sample of the stream's source, decoded; None if it is held out, or its filters or `max_images` leave it out.

    Args:
        index: of the sample in all shards.
        caption: "txt", or the field that holds it.
        without: "pieces" or "text", which its task does not look at.
        with_features: of pictures, which its task does.
    """
    source, record = stream.source, stream.shards.read(index)
    if stream.held_out is not None and stream.held_out.has(source.name, stream.shards.key(index), record):
        return None
    fields = read_fields(record)
    if not all(rule.passes(fields) for rule in source.filters):
        return None
    if source.max_images is not None and len(list_pieces(record)) > source.max_images:
        return None
    own = source.reading, stream.tokenizer, stream.config.modality
    return decode_record(record, fields, caption, *own, without, with_features)


def fit_sample(
    sample: Sample,
    max_rows: int,
    capacity: Capacity,
    overlong: Literal["error", "drop", "window"],
    rng: np.random.Generator,
) -> Sample | None:
    """The sample if a pack holds it, a window of it, or None where it is dropped.

    Raises:
        ValueError: it is overlong, and `data.overlong` says that this is an error, or no window helps.
    """
    numbers, patches = [len(p) for p in sample.pieces], [len(p.patches) for p in sample.pieces]
    needed, room = [*numbers, *patches], [*capacity.pieces, *capacity.patches]
    has_too_many = any(need > there for need, there in zip(needed, room, strict=True))
    if sample.num_rows <= max_rows and not has_too_many:
        return sample
    if overlong == "drop":
        return None
    if overlong == "window" and not has_too_many:
        return cut_window(sample, max_rows, rng)
    raise ValueError(
        f"sample {sample.key} needs {sample.num_rows} rows and pieces {numbers} of {patches} patches, more than "
        f"data.max_sample_rows ({max_rows}) or modality.*.per_pack ({list(capacity.pieces)}, of "
        f'{list(capacity.patches)} patches); raise them or set data.overlong = "drop"'
    )


def capacity_of(config: Config) -> Capacity:
    """The most that a pack holds."""
    data, modalities = config.data, config.modality.values()
    return Capacity(
        rows=data.rows_per_pack,
        tokens=data.tokens_per_pack,
        bag_tokens=data.bag_tokens_per_pack,
        sequences=data.sequences_per_pack,
        pieces=tuple(modality.per_pack for modality in modalities),
        patches=tuple(modality.per_pack * modality.num_rows for modality in modalities),
    )


def _choose(weights: dict[str, float], rng: np.random.Generator) -> str:
    """One of the keys, with a probability in proportion to its weight."""
    point = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        point -= weight
        if point < 0.0:
            return choice
    return choice
