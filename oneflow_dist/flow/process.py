"""The noising process of an objective: what its samples become, and what they look like at an instant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from oneflow_dist.containers import NoisySample, Sample
from oneflow_dist.flow.noising import WHOLE, Noising, Span, draw_times, noise_at, noise_sample


@runtime_checkable
class Process(Protocol):
    """What training and validation ask of an objective; the rest of it is how one generates, see writers/."""

    @property
    def num_marks(self) -> int:
        """How many tokens it lays between those of the vocabulary."""

    @property
    def refused_tasks(self) -> tuple[str, ...]:
        """Tasks that it cannot learn."""

    def prepare(self, sample: Sample) -> Sample:
        """The sample with all rows that it may take, before it is measured against what a pack holds."""

    def noise(self, sample: Sample, rng: np.random.Generator) -> NoisySample:
        """A prepared sample at a random instant, as training sees it."""

    def look_at(
        self, sample: Sample, rng: np.random.Generator, text_span: Span = WHOLE, piece_span: Span = WHOLE
    ) -> NoisySample:
        """A prepared sample, its condition there, at an instant whose uniform draws fall into these parts of [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """That of OneFlow: tokens are deleted, see `noise_at`."""

    noising: Noising
    num_marks: int = 0
    refused_tasks: tuple[str, ...] = ()

    def prepare(self, sample: Sample) -> Sample:
        """As it is."""
        return sample

    def noise(self, sample: Sample, rng: np.random.Generator) -> NoisySample:
        """See `noise_sample`."""
        return noise_sample(sample, self.noising, rng)

    def look_at(
        self, sample: Sample, rng: np.random.Generator, text_span: Span = WHOLE, piece_span: Span = WHOLE
    ) -> NoisySample:
        """With averaged bags, whose losses have the same mean with less noise."""
        noising = replace(self.noising, averages_bags=True)
        text_time, ages = draw_times(sample, noising, rng, text_span, piece_span)
        return noise_at(sample, text_time, ages, noising, rng)
