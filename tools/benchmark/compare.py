"""Whether two results of one command differ by more than their noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tools.benchmark.result import Measured, Result

MACHINE = ("device", "device_memory", "cores", "ranks")  # what has to be alike; versions and commits may be compared
REPETITIONS = ("steps", "warmup", "rounds")  # options that change how often something is measured, not what
DRAWS = 4000  # of the bootstrap
T_DRAWS = 200_000  # of Student's t, whose quantile numpy does not tell
CONFIDENCE = 0.975  # on either side: 19 of 20 bounds shall hold the ratio that more of the same would show
FEWEST = 5  # values that say something of their noise
SAME = "no difference beyond noise"
RATIO, LOW, HIGH = "B / A", "at least", "at most"
NOTE = (
    "Ratios are of means. Bounds aim to hold the ratio in 19 of 20 cases, by a bootstrap that draws runs of the "
    "program and in each of them stretches of neighbouring values, widened by Student's t. Of one run a side they know "
    "what varied while it lasted, and nothing of what differs from one run to the next: on a machine that others use, "
    "give folders of several runs that took turns."
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """B in units of A, and between what it is; None with too few values."""

    value: float
    bound: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """What a reader has to know beside the numbers."""
        if self.bound is None:
            return f"fewer than {FEWEST} values, no bound"
        low, high = self.bound
        return SAME if low <= 1.0 <= high else ""


def compare_results(a: Sequence[Result], b: Sequence[Result], is_unlike: bool = False) -> Measured:
    """All that was measured in every run of both sides.

    Args:
        is_unlike: compare also what was measured on other machines, with other options or of other configs.

    Raises:
        ValueError: the results are not alike, or have nothing in common.
    """
    differences = list(dict.fromkeys(what for other in (*a[1:], *b) for what in unlike(a[0], other)))
    if differences and not is_unlike:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"not alike: {', '.join(differences[:3])}{more}; --unlike compares them nevertheless")
    ratios: dict[str, Ratio] = {}
    for title, named in a[0].measured.series.items():
        for name in named:
            values = [[result.measured.series.get(title, {}).get(name, []) for result in side] for side in (a, b)]
            if all(map(sum, itertools.chain(*values))):  # what took no time anywhere has no ratio
                ratios[f"{title}: {name}"] = ratio_of_means(*values)
    if not ratios:
        titles = f"A is of {a[0].title}, B of {b[0].title}"
        raise ValueError(f"nothing was measured in all of them: {titles}; name results of one command")
    ends = {name: ratio.bound or (ratio.value, ratio.value) for name, ratio in ratios.items()}
    sides = [f"{name}: {len(side)} x {side[0].describe()}" for name, side in (("A", a), ("B", b))]
    return Measured(
        numbers={name: ratio.verdict for name, ratio in ratios.items() if ratio.verdict},
        series={
            RATIO: {name: [ratio.value] for name, ratio in ratios.items()},
            LOW: {name: [low] for name, (low, _) in ends.items()},
            HIGH: {name: [high] for name, (_, high) in ends.items()},
        },
        notes=[*sides, *[f"Unlike: {what}" for what in differences], NOTE],
    )


def bounds_of(measured: Measured) -> dict[str, tuple[float, float, float]]:
    """Least, ratio and most of what `compare_results` has compared, by name."""
    low, ratio, high = (measured.series[column] for column in (LOW, RATIO, HIGH))
    return {name: (low[name][0], ratio[name][0], high[name][0]) for name in ratio}


def unlike(a: Result, b: Result) -> list[str]:
    """What differs of machines, options and configs; run folders may."""
    sides = [
        {"command": result.command[3]}
        | {f"machine's {key}": result.machine.get(key) for key in MACHINE}
        | {f"--{key.replace('_', '-')}": value for key, value in result.options.items() if key not in REPETITIONS}
        | {f"{section}.{key}": value for section, keys in result.config.items() for key, value in keys.items()}
        for result in (a, b)
    ]
    names = dict.fromkeys(name for side in sides for name in side if name != "run.folder")
    own, theirs = sides
    return [f"{name} ({own.get(name)}, {theirs.get(name)})" for name in names if own.get(name) != theirs.get(name)]


def ratio_of_means(runs: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Ratio:
    """Of others to runs; each has the values of its steps or rounds.

    The bound is the scatter of the resampled ratio, in logarithms, times the quantile of Student's t for as many
    independent parts as the smaller side has: of few parts a bootstrap alone is too sure of itself.

    Source: arXiv:1411.5279 (what is said there of small samples).
    """
    ratio = _mean(others) / _mean(runs)
    if min(sum(map(len, side)) for side in (runs, others)) < FEWEST:
        return Ratio(ratio, None)
    rng = np.random.default_rng(0)
    scatter = np.std(np.log(resampled_means(others, rng) / resampled_means(runs, rng)))
    parts = min(len(side) if len(side) > 1 else -(-len(side[0]) // block_of(side[0])) for side in (runs, others))
    quantile = np.quantile(rng.standard_t(parts - 1, T_DRAWS), CONFIDENCE)
    factor = float(np.exp(quantile * scatter * (parts / (parts - 1)) ** 0.5))
    return Ratio(ratio, (ratio / factor, ratio * factor))


def resampled_means(runs: Sequence[Sequence[float]], rng: np.random.Generator) -> Float[np.ndarray, "draws"]:
    """Means of as many runs, each of as many values: what is slow for a while, or in a run, stays together.

    Source: the circular block bootstrap of Politis and Romano (1992).
    """
    means = []
    for values in runs:
        count, block = len(values), block_of(values)
        first = rng.integers(count, size=(DRAWS, -(-count // block), 1))
        index = (first + np.arange(block)) % count
        means.append(np.asarray(values)[index.reshape(DRAWS, -1)[:, :count]].mean(axis=1))
    drawn = rng.integers(len(runs), size=(len(runs), DRAWS))
    of_draws: Float[np.ndarray, "draws"] = np.take_along_axis(np.stack(means), drawn, axis=0).mean(axis=0)
    return of_draws


def block_of(values: Sequence[float]) -> int:
    """Neighbouring values that are drawn together, a root of all."""
    return round(len(values) ** 0.5)


def _mean(runs: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(values) for values in runs]))
