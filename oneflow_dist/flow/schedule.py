"""When tokens appear: the keep schedule kappa(t), its hazard and its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from oneflow_dist.config import FlowConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSchedule:
    """Probability kappa(t) that a target token is present at text time t; kappa(0) = 0, kappa(1) = 1, increasing.

        linear  t        cosine  1 - cos(pi t / 2)        power  t ** exponent

    Source: arXiv:2510.03506 Eq. 2; arXiv:2506.09018 section 4.
    """

    kind: Literal["linear", "cosine", "power"] = "linear"
    exponent: float = 1.0  # of "power" only

    @classmethod
    def of(cls, config: FlowConfig) -> KeepSchedule:
        """That of a config."""
        return cls(kind=config.keep_schedule, exponent=config.keep_exponent)

    def keep_prob(self, time: float) -> float:
        """kappa(time)."""
        if self.kind == "linear":
            return time
        if self.kind == "cosine":
            return 1.0 - math.cos(0.5 * math.pi * time)
        return time**self.exponent

    def hazard(self, time: float) -> float:
        """kappa'(time) / (1 - kappa(time)): chance per unit time that a missing token appears; infinite at 1."""
        if time >= 1.0:
            return math.inf
        if self.kind == "linear":
            slope = 1.0
        elif self.kind == "cosine":
            slope = 0.5 * math.pi * math.sin(0.5 * math.pi * time)
        elif time == 0.0 and self.exponent < 1.0:
            slope = math.inf
        else:
            slope = self.exponent * time ** (self.exponent - 1.0)
        return slope / (1.0 - self.keep_prob(time))

    def insertion_time(self, keep_prob: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """The inverse of kappa: a uniform draw becomes the time at which a token appears."""
        if self.kind == "linear":
            return keep_prob
        if self.kind == "cosine":
            return np.arccos(1.0 - keep_prob) * (2.0 / math.pi)
        return keep_prob ** (1.0 / self.exponent)

    def insertion_prob(self, time: float, step_size: float) -> float:
        """Chance that a token missing at `time` appears within a step: 1 - (1 - kappa(end)) / (1 - kappa(time)).

        The exact integral of the hazard; Euler's `step_size * hazard` is off for every schedule but the linear one.
        """
        end = min(1.0, time + step_size)
        if end >= 1.0:
            return 1.0
        return 1.0 - (1.0 - self.keep_prob(end)) / (1.0 - self.keep_prob(time))
