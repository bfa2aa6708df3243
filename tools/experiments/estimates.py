"""Numbers with the ranges in which they are found again, and what the difference of two of them says."""

# Shapes: n seeds, p points of a figure.

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.experiments.reading import Figure

PRIOR = 4  # degrees of freedom of the spread that all points of a figure have in common
AGAIN = 0.99  # of one more seed, anywhere, that lies in the range of a number
SURE = 0.95  # of differences


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number of several seeds."""

    mean: float
    spread: float  # the standard deviation of one seed
    seeds: int

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A number that is known."""
        return cls(mean=value, spread=0.0, seeds=1)

    @property
    def half_range(self) -> float:
        """One more seed lies so near to the mean, in 99 of 100 cases."""
        return _quantile(AGAIN, self._freedom) * self.spread * (1.0 + 1.0 / self.seeds) ** 0.5

    @property
    def half_interval(self) -> float:
        """The mean of all seeds there are lies so near, in 95 of 100 cases."""
        return _quantile(SURE, self._freedom) * self.spread / self.seeds**0.5

    @property
    def _freedom(self) -> int:
        return self.seeds - 1 + PRIOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of the means of two numbers, with its 95 % interval."""

    value: float
    half: float

    def verdict(self, by: float) -> str:
        """Whether it is larger than `by` for sure, smaller for sure, or neither."""
        if self.value - self.half > by:
            return "seen"
        return "contradicted" if self.value + self.half < by else "not seen at this scale"


def estimate(values: dict[str, Sequence[float]], figure: Figure, documents: int) -> dict[str, Estimate]:
    """Of each point of a figure, from the values of its seeds.

    The variance of few seeds is itself uncertain: it is averaged with that of all points, which counts as PRIOR degrees
    of freedom. No spread is less than that of drawing the documents of a share, or than `figure.spread` of the mean,
    which is what another machine's rounding is granted.
    """
    variances = {name: np.var(own, ddof=1) if len(own) > 1 else 0.0 for name, own in values.items()}
    common = float(np.mean([variances[name] for name, own in values.items() if len(own) > 1] or [0.0]))
    found = {}
    for name, own in values.items():
        mean, freedom = float(np.mean(own)), len(own) - 1
        variance = (freedom * float(variances[name]) + PRIOR * common) / (freedom + PRIOR)
        floors = [variance**0.5, figure.spread * abs(mean)]
        if figure.is_share and documents:
            smooth = (mean * documents + 1.0) / (documents + 2.0)
            floors.append((max(0.0, smooth * (1.0 - smooth)) / documents) ** 0.5)
        found[name] = Estimate(mean=mean, spread=max(floors), seeds=len(own))
    return found


def difference(larger: Estimate, smaller: Estimate) -> Difference:
    """Of the means of two numbers."""
    half = (larger.half_interval**2 + smaller.half_interval**2) ** 0.5
    return Difference(value=larger.mean - smaller.mean, half=half)


@functools.cache
def _quantile(inside: float, freedom: int) -> float:
    """So many standard deviations to either side hold this share of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.5 + 0.5 * inside, freedom))
