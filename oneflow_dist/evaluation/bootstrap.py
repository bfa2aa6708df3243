"""A figure with what it was made of, so that its interval can be told by drawing items anew."""

# Shapes: n items, k numbers of each.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A figure of a set of items, made of rows that stand for them."""

    rows: Float64[np.ndarray, "n k"]
    combine: Callable[[Float64[np.ndarray, "n k"]], float]  # the figure of any draw of rows
    draws: int = DRAWS  # fewer where a figure takes long

    @classmethod
    def mean_of(cls, values: Sequence[float] | Sequence[bool] | Float64[np.ndarray, "n"]) -> Measure:
        """The mean of a number of each item.

        Raises:
            ValueError: there is none.
        """
        rows = np.asarray(values, dtype=np.float64).reshape(-1, 1)
        if len(rows) == 0:
            raise ValueError("no item to take a mean of; ask for at least one")
        return cls(rows=rows, combine=_mean)

    @classmethod
    def ratio_of(cls, pairs: Sequence[tuple[float, float]]) -> Measure:
        """How many are right of how many, of all items together: those of one item are drawn together.

        Raises:
            ValueError: nothing is counted in any.
        """
        rows = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        if rows[:, 1].sum() == 0.0:
            raise ValueError("nothing to take a part of; ask for more items")
        return cls(rows=rows, combine=_ratio)

    @property
    def value(self) -> float:
        """The figure of the items themselves."""
        return float(self.combine(self.rows))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Between which bounds 95 of 100 figures lie whose items are drawn anew, with repetition.

        Of a share of items, each right or wrong, Wilson's: who draws from items that are all right has no doubt left.

        Source: Efron 1979, percentiles; Wilson 1927.
        """
        if self.combine is _mean and np.isin(self.rows, (0.0, 1.0)).all():
            return wilson(int(self.rows.sum()), len(self.rows))
        rng, number = np.random.default_rng(seed), len(self.rows)
        drawn = [self.combine(self.rows[rng.integers(0, number, number)]) for _ in range(self.draws)]
        low, high = np.quantile(drawn, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
        return float(low), float(high)


def wilson(right: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a part that is counted: that of 95 % for `z` = 1.96.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),    p = right/n
    """
    part, share = right / number, z * z / number
    middle, half = part + share / 2.0, math.sqrt(part * (1.0 - part) * share + share * share / 4.0)
    return max(0.0, (middle - half) / (1.0 + share)), min(1.0, (middle + half) / (1.0 + share))


def _mean(rows: Float64[np.ndarray, "n 1"]) -> float:
    return float(rows.mean())


def _ratio(rows: Float64[np.ndarray, "n 2"]) -> float:
    whole = rows[:, 1].sum()
    return float(rows[:, 0].sum() / whole) if whole else 0.0
