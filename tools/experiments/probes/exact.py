"""The sampler with exact heads on two small worlds of texts, all of them enumerated: no model, no chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.containers import Prediction
from oneflow_dist.sampling import SamplingConfig
from tools.experiments.firing import log_filled_of, log_rate_of
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject
from tools.experiments.token_schedule import EARLIEST, LATEST, reweigh
from tools.experiments.toys import (
    FIX,
    LETTERS,
    LINEAR,
    VAR,
    Say,
    Weight,
    as_they_are,
    at_any_extended_time,
    at_any_time,
    at_time,
    at_time_of_letters,
    distance,
    law_after,
    mean_length,
    settings_of,
)
from tools.experiments.variants.fixed_count import num_missing
from tools.experiments.variants.rate_alone import by_rate
from tools.experiments.variants.truncated import unclamped

PAPER: dict[str, Any] = {"time_power": 1.0, "firing": "independent"}
RARELY = 1e-6  # how much less likely a text is for each token more or less than its time allows
NUM_HALVINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Heads, what they learn, and how they are sampled."""

    weight: Weight = at_time  # of the posterior
    say: Say = as_they_are
    sampling: dict[str, Any] = field(default_factory=lambda: PAPER)


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """Total variation to the data of VAR and FIX, and the mean length of VAR's texts, by KINDS and numbers of steps.

    Raises:
        ValueError: a kind is not one of KINDS.
    """
    for name in probe.kinds:
        if name not in KINDS:
            raise ValueError(f"probe.kinds: there is no {name}; there are {', '.join(KINDS)}")
        for steps in probe.values:
            laws = [law_of(data, KINDS[name], int(steps)) for data in (VAR, FIX)]
            yield Row(name, steps, "tv", distance(laws[0], VAR))
            yield Row(name, steps, "mean_length", mean_length(laws[0]))
            yield Row(name, steps, "tv_fixed", distance(laws[1], FIX))


def law_of(data: dict[str, float], kind: Kind, steps: int) -> dict[str, float]:
    """The law of what is written in so many steps."""
    return law_after(data, LINEAR, kind.weight, settings_of(steps, **kind.sampling), say=kind.say)


def at_fixed_count(whole: str, there: str, keep_prob: float) -> float:
    """What the posterior weighs where so many tokens are missing as the time says, any of them.

    A sampler also meets texts of other lengths, of which that says nothing; then the nearest lengths count.
    """
    length = len(whole)
    missing = num_missing(length, keep_prob)
    return RARELY ** abs(length - missing - len(there)) / math.comb(length, len(there))


def say_rate_alone(canvases: list[Canvas], prediction: Prediction, own: SamplingConfig) -> Prediction:
    """No gate; the rate is that of all slots, empty ones among them."""
    log_rate = log_rate_of(prediction) + log_filled_of(prediction)
    return by_rate(replace(prediction, log_rate=log_rate.float()))


def say_truncated(canvases: list[Canvas], prediction: Prediction, own: SamplingConfig) -> Prediction:
    """Rates where the zero-truncated likelihood has its optimum, whatever they are."""
    return unclamped(say_truncated_clamped(canvases, prediction, own))


def say_truncated_clamped(canvases: list[Canvas], prediction: Prediction, own: SamplingConfig) -> Prediction:
    """The same rates; the sampler takes none below 1."""
    rate = truncated_rate(log_rate_of(prediction).exp())
    return replace(prediction, log_rate=rate.log().float())


def truncated_rate(mean: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """The rate of a Poisson number that has this mean, given that it is not 0: rate / (1 - exp(-rate)) = mean."""
    low, high = torch.full_like(mean, 1e-12), mean.clamp(min=1e-12)
    for _ in range(NUM_HALVINGS):
        middle = 0.5 * (low + high)
        is_less = middle / -torch.expm1(-middle) < mean
        low, high = torch.where(is_less, middle, low), torch.where(is_less, high, middle)
    return 0.5 * (low + high)


def by_letter(**exponents: float) -> Kind:
    """Each letter has a keep schedule of its own, t ** exponent."""
    values = np.array([exponents[letter] for letter in LETTERS])

    def say(canvases: list[Canvas], prediction: Prediction, own: SamplingConfig) -> Prediction:
        return reweigh(canvases, prediction, own, LINEAR, values, np.zeros(0, dtype=np.int64))

    return Kind(weight=at_time_of_letters(exponents), say=say)


KINDS: dict[str, Kind] = {
    "gate": Kind(),
    "rate alone": Kind(say=say_rate_alone),
    "truncated": Kind(say=say_truncated),
    "truncated, clamped": Kind(say=say_truncated_clamped),
    "fixed count": Kind(weight=at_fixed_count),
    "no time": Kind(weight=at_any_time),
    "no time, tau to 2": Kind(weight=at_any_extended_time),
    "no time, clock": Kind(weight=at_any_time, sampling=PAPER | {"clock_share": 0.92}),
    "a early, b late": by_letter(a=EARLIEST, b=LATEST),
    "b early, a late": by_letter(a=LATEST, b=EARLIEST),
    "systematic firing": Kind(sampling=PAPER | {"firing": "systematic"}),
    "smaller late steps": Kind(sampling=PAPER | {"time_power": 1.5}),
    "systematic firing, smaller late steps": Kind(sampling={"firing": "systematic", "time_power": 1.5}),
}
