"""How tests noise their samples, and noisy samples that miss other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from oneflow_dist.containers import Bags, NoisySample
from oneflow_dist.flow.noising import Noising
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw

LINEAR = KeepSchedule()
UNIFORM = (TimeLaw(),)  # of one modality


def noising(schedule: KeepSchedule = LINEAR, laws: Sequence[TimeLaw] = UNIFORM, **changes: Any) -> Noising:
    """Nothing is dropped and times are even, but for `changes`."""
    return Noising(schedule=schedule, laws=tuple(laws), **changes)


class ChosenKeep(np.random.Generator):
    """A generator whose uniform draws keep exactly the chosen tokens, and the first, at keep probability 1/2."""

    def __init__(self, keep: Sequence[bool]):
        super().__init__(np.random.PCG64(0))
        self.keep = np.array((True, *keep))

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        assert size == len(self.keep)
        return np.where(self.keep, 0.25, 0.75)


def with_bags(sample: NoisySample, slot: Sequence[int] | np.ndarray, tokens: np.ndarray | None = None) -> NoisySample:
    """The sample missing just these tokens, at first its own, behind these of its tokens."""
    own = sample.bags.tokens if tokens is None else tokens
    return replace(sample, bags=Bags.of_tokens(own, np.array(slot, dtype=np.int64), len(sample.tokens)))
