"""How much of a rival's FLOPs, or of another budget, one needs to be as good."""

# Shapes: R resamples, n seeds, S shares in growing order.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
TAIL = 0.05  # on each side of an interval
SEED = 0
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A figure of one contender, larger is better."""

    flops: np.ndarray  # [S], really spent, the mean over seeds
    values: np.ndarray  # [n, S]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """FLOPs over a rival's; 0 where the least budget is already enough, inf where the largest is not."""

    value: float
    least: float  # that could be told apart: of the smallest budget
    most: float  # of the largest
    low: float | None = None  # ends of the interval; None of one seed, which knows no spread
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return self.write(self.value)
        return f"{self.write(self.value)} [{self.write(self.low)}, {self.write(self.high)}]"

    def write(self, ratio: float) -> str:
        """A ratio, or the end of what was measured beyond which it lies."""
        if ratio == 0.0:
            return f"≤ {self.least:.2f}"
        return f"> {self.most:.2f}" if math.isinf(ratio) else f"{ratio:.2f}"


def compare_flops(ours: Scores, theirs: Scores, samples: int = 0) -> Ratio:
    """FLOPs at which the mean of ours reaches theirs at the largest budget, over theirs there.

    The interval is of resampled seeds, of both.

    Args:
        samples: of the documents that a value is a share of, which are drawn anew, too; 0: it is no share.
    """
    rival = theirs.flops[-1]
    logs = np.log(ours.flops / rival)
    ends = {"least": float(np.exp(logs[0])), "most": float(np.exp(logs[-1]))}
    value = float(reach(logs, ours.values.mean(0)[None], theirs.values.mean(0)[None, -1])[0])
    if min(len(ours.values), len(theirs.values)) < 2:
        return Ratio(value=value, **ends)
    rng = np.random.default_rng(SEED)
    own, other = (resample(scores.values, samples, rng) for scores in (ours, theirs))
    low, high = np.quantile(reach(logs, own, other[:, -1]), [TAIL, 1.0 - TAIL], method="inverted_cdf")
    return Ratio(value=value, low=float(low), high=float(high), **ends)


def resample(values: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Means [R, S] of seeds [n, S] drawn with replacement, all shares of a seed together."""
    drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))]
    if samples:
        drawn = rng.binomial(samples, drawn.clip(0.0, 1.0)) / samples
    return np.asarray(drawn.mean(1))


def reach(logs: np.ndarray, curves: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The budget [R] at which monotone curves [R, S] over log budgets [S] reach a target [R], or 0, or inf."""
    curves = make_monotone(curves)
    target = target - ROUNDING * (1.0 + np.abs(target))  # equal scores are equal
    is_enough = curves >= target[:, None]
    first = np.where(is_enough.any(1), is_enough.argmax(1), 0)
    number, before = np.arange(len(curves)), np.maximum(first - 1, 0)
    low, high = curves[number, before], curves[number, first]
    part = (target - low) / np.where(first > 0, high - low, 1.0)
    budget = np.exp(logs[before] + part * (logs[first] - logs[before]))
    return np.where(is_enough.any(1), np.where(first > 0, budget, 0.0), np.inf)


def make_monotone(curves: np.ndarray) -> np.ndarray:
    """The growing curves nearest to [R, S], by least squares: chance alone makes none that is better than it is.

    max over j <= i of min over k >= i of the mean of j to k
    """
    num_shares = curves.shape[1]
    sums = np.concatenate([np.zeros((len(curves), 1)), curves.cumsum(1)], axis=1)
    fitted = np.full_like(curves, -np.inf)
    for place in range(num_shares):
        for first in range(place + 1):
            means = [(sums[:, last + 1] - sums[:, first]) / (last + 1 - first) for last in range(place, num_shares)]
            fitted[:, place] = np.maximum(fitted[:, place], np.min(means, axis=0))
    return fitted
