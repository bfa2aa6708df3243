"""Numbers with the ranges in which they are found again, and what the difference of two of them says."""

# Shapes: n seeds, p points of a figure.

from __future__ import annotations

import functools
import math
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
    floor: float  # the part of it that drawing other documents makes
    seeds: int
    least: float = -math.inf  # that a value can be
    most: float = math.inf

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A number that is known."""
        return cls(mean=value, spread=0.0, floor=0.0, seeds=1)

    @property
    def half_range(self) -> float:
        """One more seed lies so near to the mean, in 99 of 100 cases."""
        half = _quantile(AGAIN, self._freedom) * self.spread * (1.0 + 1.0 / self.seeds) ** 0.5
        return min(half, max(self.mean - self.least, self.most - self.mean))

    @property
    def half_interval(self) -> float:
        """The mean of all seeds there are lies so near, in 95 of 100 cases."""
        return _quantile(SURE, self._freedom) * self.spread / self.seeds**0.5

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of that interval, no further than values can be; of one seed the mean alone."""
        half = self.half_interval if self.seeds > 1 else 0.0
        return max(self.least, self.mean - half), min(self.most, self.mean + half)

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
    """Of points that are alike, from the values of their seeds.

    The variance of few seeds is itself uncertain: it counts beside the common one of all points, which stands for PRIOR
    degrees of freedom; a larger one of its own is taken as it is. No spread is less than that of drawing the documents
    of a share, or than `figure.spread` of the mean, which is what another machine's rounding is granted.
    """
    own_variance = {name: float(np.var(own, ddof=1)) for name, own in values.items() if len(own) > 1}
    common = common_variance(own_variance, {name: len(own) - 1 for name, own in values.items()})
    ends = {"least": 0.0, "most": 1.0} if figure.is_share else {}
    found = {}
    for name, own in values.items():
        mean, floor = float(np.mean(own)), 0.0
        if figure.is_share and documents:
            smooth = (mean * documents + 1.0) / (documents + 2.0)
            floor = (max(0.0, smooth * (1.0 - smooth)) / documents) ** 0.5
        shared = shared_spread(own_variance.get(name, 0.0), common, len(own) - 1)
        spread = max(shared, floor, figure.spread * abs(mean))
        found[name] = Estimate(mean=mean, spread=spread, floor=floor, seeds=len(own), **ends)
    return found


def common_variance(variances: dict[str, float], freedom: dict[str, int]) -> float:
    """The median of the points', each over the median that the variance of so few draws has; 0 of none."""
    from scipy.stats import chi2

    scaled = [own * freedom[name] / float(chi2.ppf(0.5, freedom[name])) for name, own in variances.items()]
    return float(np.median(scaled)) if scaled else 0.0


def shared_spread(own: float, common: float, freedom: int) -> float:
    """The standard deviation that a variance of few draws and the common one give; its own, if that is larger."""
    return max(own, (freedom * own + PRIOR * common) / (freedom + PRIOR)) ** 0.5


def difference(larger: Estimate, smaller: Estimate) -> Difference:
    """Of the means of two numbers that have nothing to do with each other."""
    half = (larger.half_interval**2 + smaller.half_interval**2) ** 0.5
    return Difference(value=larger.mean - smaller.mean, half=half)


def paired_difference(values: Sequence[tuple[float, float]], common: float, floor: float) -> Difference:
    """Of two numbers that have the same seeds, several: seeds that are good for both cancel out.

    Args:
        common: the variance that differences of such numbers usually have.
        floor: the least standard deviation of one.
    """
    found = np.array([larger - smaller for larger, smaller in values])
    freedom = len(found) - 1
    spread = max(shared_spread(float(found.var(ddof=1)), common, freedom), floor)
    half = _quantile(SURE, freedom + PRIOR) * spread / len(found) ** 0.5
    return Difference(value=float(found.mean()), half=half)


@functools.cache
def _quantile(inside: float, freedom: int) -> float:
    """So many standard deviations to either side hold this share of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.5 + 0.5 * inside, freedom))
