"""Text by masks: what a sample becomes where tokens are hidden, and the model says which they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from oneflow_dist.containers import Bags, NoisySample, Sample
from oneflow_dist.flow.noising import (
    WHOLE,
    Noising,
    Span,
    draw_kept,
    draw_times,
    is_deletable,
    lose_condition,
    noise_present,
)

MOST_WEIGHT = 1000.0  # of a token: at later times than 1 - 1 / 1000, linear, hardly one is hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Masked diffusion: what OneFlow deletes is hidden instead, and its place is known.

    Each hidden token is the bag of its own row. With kappa the keep schedule, of `flow`, and t the text time

        loss = hazard(t) * sum over hidden tokens of -log Q(token),     hazard(t) = kappa'(t) / (1 - kappa(t))

    whose mean over t bounds -log p(text); for the linear schedule 1 / (1 - t), where 1 - t is LLaDA's mask ratio. It is
    divided by the tokens that may be hidden: "paper" of flow.normalize is LLaDA's mean over the tokens of a sample.
    Pieces come and go as in OneFlow: where they are inserted like tokens, one whose token is hidden is not there.

    Source: arXiv:2502.09992 Eq. 3 and Algorithm 1.
    """

    noising: Noising
    canvas_tokens: int  # see [objective]
    eos: int
    mark: int  # stands where a token is hidden
    num_marks: int = 1
    refused_tasks: tuple[str, ...] = ()

    def prepare(self, sample: Sample) -> Sample:
        """`<|eos|>` fills each stretch of text that may be hidden, as far as its canvas reaches."""
        if not self.canvas_tokens:
            return sample
        can_go = is_deletable(sample)
        ends = np.flatnonzero(can_go & ~np.append(can_go[1:], False)) + 1
        starts = np.flatnonzero(can_go & ~np.append(False, can_go[:-1]))
        filled = ends.repeat(-(ends - starts) % self.canvas_tokens)  # before which tokens
        place = np.arange(len(can_go)) + np.searchsorted(filled, np.arange(len(can_go)), side="right")
        return replace(
            sample,
            tokens=np.insert(sample.tokens, filled, self.eos),
            is_target=np.insert(sample.is_target, filled, True),
            pieces=tuple(replace(pieces, token=place[pieces.token]) for pieces in sample.pieces),
            block_ends=tuple(int(place[end - 1]) + 1 for end in sample.block_ends),
        )

    def noise(self, sample: Sample, rng: np.random.Generator) -> NoisySample:
        """At a random instant; some samples lose their condition."""
        draw = rng.random()
        return lose_condition(self.look_at(sample, rng), draw, self.noising)

    def look_at(
        self, sample: Sample, rng: np.random.Generator, text_span: Span = WHOLE, piece_span: Span = WHOLE
    ) -> NoisySample:
        """At times as `draw_times` gives them."""
        text_time, ages = draw_times(sample, self.noising, rng, text_span, piece_span)
        keep = draw_kept(sample, text_time, ages, self.noising, rng)
        hidden = np.flatnonzero(~keep)
        bags = Bags.of_tokens(sample.tokens[hidden], hidden, len(keep))
        weight = min(MOST_WEIGHT, self.noising.schedule.hazard(text_time))
        return NoisySample(
            key=sample.key,
            tokens=np.where(keep, sample.tokens, self.mark),
            is_given=~sample.is_target,
            is_open=is_deletable(sample) & (text_time < 1.0),
            bags=replace(bags, weight=bags.weight * np.float32(weight)),
            pieces=noise_present(sample, ages, np.arange(len(keep)), rng),
            text_time=text_time,
            block_ends=sample.block_ends or (sample.front,),
        )
