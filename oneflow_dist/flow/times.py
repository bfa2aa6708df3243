"""When pieces are looked at: the law of their times in training, and the clock by which generation makes them."""

# Shapes: i pieces.

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float

from oneflow_dist.containers import Pieces
from oneflow_dist.modality import ModalityConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLaw:
    """Of the pieces of one modality.

    A piece of m rows has the clock u in [0, 1] and the time t that follows it, with s = sqrt(m / shift_rows):

        t = u / (s - (s - 1) u)        u = s t / (1 + (s - 1) t)

    Averaged over its elements, noise hides less of a larger piece; this gives it as much noise as one of `shift_rows`
    rows has at the time u. In terms of the noise share 1 - t it is the shift of SD3.

    Source: arXiv:2403.03206, section 5.3.2 (shift, resolutions) and 3.1 (logit-normal).
    """

    kind: Literal["uniform", "logit_normal"] = "uniform"
    shift_rows: int = 0  # 0: t = u for all
    shift: float = 1.0  # s is as many times larger, for pieces of any size

    @classmethod
    def of(cls, modality: ModalityConfig, shift: float = 1.0) -> TimeLaw:
        """That of a modality."""
        return cls(kind=modality.times, shift_rows=modality.shift_rows, shift=shift)

    def time(self, draws: Float[np.ndarray, "i"], pieces: Pieces) -> Float[np.ndarray, "i"]:
        """Uniform draws become times of training, where no schedule of insertion gives them."""
        if self.kind == "logit_normal":
            normal = NormalDist()
            values = np.array([normal.inv_cdf(min(max(draw, 1e-12), 1.0 - 1e-12)) for draw in draws.tolist()])
            draws = 1.0 / (1.0 + np.exp(-values))
        return self.at_clock(draws, pieces)

    def at_clock(self, clock: Float[np.ndarray, "i"], pieces: Pieces) -> Float[np.ndarray, "i"]:
        """The time of each piece at its clock."""
        if self._is_even:
            return clock
        shift = self._shift(pieces)
        return clock / (shift - (shift - 1.0) * clock)

    def clock(self, time: Float[np.ndarray, "i"], pieces: Pieces) -> Float[np.ndarray, "i"]:
        """The inverse of `at_clock`."""
        if self._is_even:
            return time
        shift = self._shift(pieces)
        return shift * time / (1.0 + (shift - 1.0) * time)

    def step(self, time: Float[np.ndarray, "i"], step_size: float, pieces: Pieces) -> Float[np.ndarray, "i"]:
        """How far times go while clocks go `step_size`, and not beyond 1."""
        if self._is_even:
            return np.minimum(step_size, 1.0 - time)
        return self.at_clock(np.minimum(1.0, self.clock(time, pieces) + step_size), pieces) - time

    @property
    def _is_even(self) -> bool:
        return self.shift_rows == 0 and self.shift == 1.0

    def _shift(self, pieces: Pieces) -> Float[np.ndarray, "i"]:
        size = pieces.num_patches / self.shift_rows if self.shift_rows else np.ones(len(pieces))
        return self.shift * np.sqrt(size)
