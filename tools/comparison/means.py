"""What the seeds of every config and share have in common, and how far they differ."""

# Shapes: n seeds, S shares in growing order.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.comparison.figures import FIGURES, Figure, Reading
from tools.comparison.parity import Ratio, Scores, compare_flops
from tools.comparison.plan import Contender


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All runs of a contender."""

    contender: Contender
    shares: tuple[float, ...]
    readings: tuple[tuple[Reading, ...], ...]  # [n, S]

    @property
    def name(self) -> str:
        """Of the config."""
        return self.contender.name

    @property
    def steps(self) -> list[int]:
        """Of each share."""
        return [reading.run.steps for reading in self.readings[0]]

    @property
    def flops(self) -> np.ndarray:
        """[n, S], really spent."""
        return np.array([[reading.flops for reading in row] for row in self.readings])

    @property
    def seconds(self) -> np.ndarray:
        """[n, S], of training steps."""
        return np.array([[reading.seconds for reading in row] for row in self.readings])

    def values(self, figure: Figure) -> np.ndarray:
        """[n, S]."""
        return np.array([[reading.values[figure.key] for reading in row] for row in self.readings])

    def scores(self, figure: Figure) -> Scores:
        """Of a figure, larger is better."""
        return Scores(flops=self.flops.mean(0), values=figure.sign * self.values(figure))


def gather(readings: Sequence[Reading]) -> list[Outcome]:
    """Readings by contender, seed and share; every seed has the same of them."""
    outcomes = []
    for contender in {reading.run.contender.name: reading.run.contender for reading in readings}.values():
        own = [reading for reading in readings if reading.run.contender.name == contender.name]
        seeds, shares = sorted({r.run.seed for r in own}), sorted({r.run.share for r in own})
        table = {(r.run.seed, r.run.share): r for r in own}
        rows = tuple(tuple(table[seed, share] for share in shares) for seed in seeds)
        outcomes.append(Outcome(contender=contender, shares=tuple(shares), readings=rows))
    return outcomes


def standard_error(values: np.ndarray) -> np.ndarray | None:
    """Of means over the first dim; None of one."""
    return values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None


def parity(ours: Outcome, rival: Outcome, samples: int) -> dict[str, Ratio]:
    """By key of every figure the ratio of FLOPs at which ours is as good."""
    return {
        figure.key: compare_flops(ours.scores(figure), rival.scores(figure), samples if figure.is_share else 0)
        for figure in FIGURES
    }
