"""Keep schedules of their own for the tokens: token a is there at text time t with probability t ** exponent[a].

Training keeps each token with its own chance. In a step from t to t + d a missing token a appears with chance q[a], so
a slot that misses (1 - pi) rate Q(a) of each fires with (1 - pi) min(1, sum over a of rate Q(a) q[a]), and what it then
gets is drawn from Q(a) q[a], up to a factor. All alignments of the same kept tokens miss the same ones, so each is as
likely as another, and averaged bags are right as they are. Pieces keep the schedule of the config.
"""

# Shapes: N slots of all documents; V vocabulary of the tokenizer, v that of the model; n tokens of one document.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction, Sample
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import Noising, is_deletable
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers.drawing import sample_tokens
from oneflow_dist.writers.insertion import Insertion
from oneflow_dist.writers.writer import Change, step_size
from tools.experiments.firing import log_filled_of, log_rate_of, with_rate
from tools.experiments.token_counts import Measure, measure_once

EARLIEST, LATEST = 0.5, 2.0  # exponents
NEVER = -1e30  # a logit; finite, so that no difference of two is NaN
_noising_of = Noising.of


def replacements_by(measure: Measure, is_late: bool) -> dict[str, object]:
    """What takes the place of what for exponents linear in the rank of a measure.

    Args:
        is_late: tokens of a large measure come late; else early.
    """

    def exponents(config: Config) -> Float[np.ndarray, "V"]:
        rank = rank_of(measure_once(measure, config))
        return EARLIEST + (LATEST - EARLIEST) * (rank if is_late else 1.0 - rank)

    class ScheduledNoising(TokenNoising):
        def exponents(self) -> Float[np.ndarray, "V"]:
            assert self.config is not None, "made by `of`"
            return exponents(self.config)

    class ScheduledInsertion(TokenInsertion):
        def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer):
            super().__init__(model, config, tokenizer)
            self.exponents = exponents(config)

    return {
        "oneflow_dist.flow.noising:Noising.of": ScheduledNoising.of,
        "oneflow_dist.flow.noising:draw_kept": draw_kept,
        "oneflow_dist.sampler:Insertion": ScheduledInsertion,
        "oneflow_dist.writers.insertion:draw_tokens": draw_of_logits,
        "oneflow_dist.writers.insertion:probs_of": probs_of_logits,
    }


def rank_of(values: Float[np.ndarray, "V"]) -> Float[np.ndarray, "V"]:
    """Of each value its place among all different ones: 0 for the least, 1 for the largest, and for one alone 1/2."""
    different, rank = np.unique(values, return_inverse=True)
    return rank / (len(different) - 1) if len(different) > 1 else np.full(len(values), 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenNoising(Noising, ABC):
    """How samples are noised whose tokens have schedules of their own."""

    config: Config | None = None

    @classmethod
    def of(cls, config: Config) -> TokenNoising:
        """As a config says; nothing is counted before a sample is noised, since reading samples makes one of these."""
        plain = _noising_of(config)
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)}, config=config)

    @abstractmethod
    def exponents(self) -> Float[np.ndarray, "V"]:
        """Of the vocabulary."""


def draw_kept(
    sample: Sample,
    text_time: float,
    ages: Sequence[Float[np.ndarray, "_"]],
    noising: Noising,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "n"]:
    """Which tokens are there: each deletable one with its own probability, that of a piece once it has an age."""
    assert isinstance(noising, TokenNoising), "a noising that this module has not made"
    keep_prob = text_time ** noising.exponents()[sample.tokens]
    keep = ~is_deletable(sample) | (rng.random(sample.tokens.size) < keep_prob)
    for pieces, age in zip(sample.pieces, ages, strict=True):
        keep[pieces.token] = age >= 0.0
    return keep


class TokenInsertion(Insertion):
    """The project's sampler, told of heads and logits in which every token has its own insertion probability."""

    exponents: Float[np.ndarray, "V"]

    def begin(self, canvas: Canvas) -> None:
        """Refuse what assumes one schedule for all tokens.

        Raises:
            ValueError: corrections or a clock's share are asked for.
        """
        for name in ("corrections", "clock_share"):
            if value := getattr(self.sampling, name):
                raise ValueError(f"sampling.{name}: is {value}, but tokens have schedules of their own; set it to 0")
        super().begin(canvas)

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """See `Writer.step`; in what the sampler gets, the hidden rows of slots are logits."""
        logits = self.model.bag_logits(prediction.slot_hidden).double()
        logits[:, self.tokenizer.vocab_size :] = NEVER
        prediction = replace(prediction, slot_hidden=logits)
        pieces = np.array(list(self.tokenizer.piece_of.values()), dtype=np.int64)
        told = reweigh(canvases, prediction, self.sampling, self.schedule, self.exponents, pieces)
        return super().step(canvases, samples, told)


def reweigh(
    canvases: list[Canvas],
    prediction: Prediction,
    sampling: SamplingConfig,
    schedule: KeepSchedule,
    exponents: Float[np.ndarray, "V"],
    pieces: Int64[np.ndarray, "_"],
) -> Prediction:
    """Heads and logits from which the sampler with one schedule does what these tokens' schedules say.

    Args:
        prediction: whose hidden rows are logits [N, v], v >= V, of tokens that are missing.
        schedule: what the sampler goes by, and the tokens of pieces.
        pieces: tokens that stand for pieces.

    Numerics: float64.
    """
    chances, plain = [], []
    for canvas in canvases:
        size = step_size(canvas, sampling)
        own = schedule.insertion_prob(canvas.text_time, size) if canvas.is_writing else 1.0
        of_tokens = insertion_probs(exponents, canvas.text_time, size) if canvas.is_writing else np.ones(len(exponents))
        of_tokens[pieces] = own
        chances.append(torch.from_numpy(of_tokens).expand(len(canvas.tokens), -1))
        plain += [own] * len(canvas.tokens)
    logits = prediction.slot_hidden.double()
    log_chance = torch.zeros_like(logits)
    log_chance[:, : len(exponents)] = torch.cat(chances).log().to(logits)
    appearing = logits.log_softmax(-1) + log_chance
    mean_chance = appearing.logsumexp(-1) - torch.tensor(plain, dtype=torch.float64).log().to(logits)
    log_rate = log_rate_of(prediction).clamp(min=0.0) + mean_chance
    return replace(with_rate(prediction, log_filled_of(prediction), log_rate), slot_hidden=appearing)


def insertion_probs(exponents: Float[np.ndarray, "V"], time: float, size: float) -> Float64[np.ndarray, "V"]:
    """Chance of each token, missing at `time`, to appear within a step: 1 - (1 - kappa(end)) / (1 - kappa(time))."""
    end = min(1.0, time + size)
    if end >= 1.0:
        return np.ones(len(exponents))
    return 1.0 - (1.0 - end**exponents) / (1.0 - time**exponents)


def draw_of_logits(
    model: OneFlow,
    logits: Float[Tensor, "F v"],
    generators: list[np.random.Generator],
    sampling: SamplingConfig,
    vocab_size: int,
) -> Int64[np.ndarray, "F"]:
    """A token for each slot that fires, as `draw_tokens` does it with hidden rows."""
    if not generators:
        return np.zeros(0, dtype=np.int64)
    draws = torch.tensor([rng.random() for rng in generators], dtype=torch.float64)
    return sample_tokens(logits.float(), draws, sampling.temperature, sampling.top_p, sampling.top_k).cpu().numpy()


def probs_of_logits(
    model: OneFlow, logits: Float[Tensor, "F v"], tokens: Int64[np.ndarray, "F"]
) -> Float[np.ndarray, "F"]:
    """Of each token, in the distribution of what appears in its slot in this step."""
    chosen = torch.from_numpy(tokens).to(logits.device)[:, None]
    return logits.softmax(-1).gather(1, chosen).squeeze(1).cpu().numpy()
