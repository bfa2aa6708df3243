"""Text by insertion: Algorithms 1 and 2."""

# Shapes: n slots of a document.

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool

from oneflow_dist.canvas import Canvas
from oneflow_dist.clock import at_time
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.draws import draw_systematically
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers.drawing import draw_tokens, probs_of
from oneflow_dist.writers.writer import Change, find_room, step_size, velocities_of

MAX_LOG_RATE = 80.0  # no rate is larger: its exponential is finite, and a slot with it fires whenever it may


class Insertion:
    """Every open slot gets a token or none in a step.

        pieces  Y += min(dt, 1 - t) velocity                    their clocks start when they are inserted
        text    a slot fires with chance (1 - pi) min(1, q max(1, rate)), q the exact insertion probability of the step;
                it then gets one token of its distribution Q; the token of a piece spawns noise

    Where any token is missing, one or more are: a smaller rate is an error of the head. Slots that fire together do not
    know of each other, so a document draws for all of them at once, in a way that neighbours fire in turns (`firing`),
    and steps are smaller towards the end of the text (`time_power`), when what is missing depends most on what has just
    appeared beside it.

    With `blocks`, what is written becomes prompt when it is done, and the document goes on behind it.

    Source: arXiv:2510.03506 Algorithms 1 and 2.
    """

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer):
        self.model, self.sampling, self.tokenizer = model, config.sampling, tokenizer
        self.schedule = KeepSchedule.of(config.flow)

    def begin(self, canvas: Canvas) -> None:
        """Refuse holes before the end where blocks are asked for."""
        if self.sampling.blocks and not canvas.grows_at_end:
            raise ValueError(
                f"sampling.blocks: is {self.sampling.blocks}, but a prompt has a hole or a piece to make before its "
                "end; block by block a document grows at its end alone: leave them out, or set it to 0"
            )

    def snapshot(self, canvas: Canvas) -> NoisySample:
        """As it stands."""
        return canvas.snapshot()

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """See `Writer.step`."""
        sampling = self.sampling
        fires = draw_fires(canvases, prediction, sampling, self.schedule)
        firing = torch.from_numpy(np.flatnonzero(np.concatenate(fires))).to(prediction.slot_hidden.device)
        generators = [c.rng for c, fire in zip(canvases, fires, strict=True) for _ in range(int(fire.sum()))]
        hidden = prediction.slot_hidden[firing]
        tokens = draw_tokens(self.model, hidden, generators, sampling, self.tokenizer.vocab_size)
        probs = probs_of(self.model, hidden, tokens)
        first, changes = 0, []
        for canvas, fire, velocities in zip(canvases, fires, velocities_of(samples, prediction), strict=True):
            slots = np.flatnonzero(fire)
            drawn = slice(first, first + len(slots))
            first += len(slots)
            was_writing = canvas.is_writing
            canvas.advance(velocities, step_size(canvas, sampling), sampling, canvas.num_steps)
            fits = find_room(canvas, tokens[drawn], sampling.max_rows)
            canvas.insert(slots[fits], tokens[drawn][fits], canvas.num_steps)
            is_kept = np.ones(len(canvas.tokens), dtype=bool)
            if was_writing and not canvas.is_writing and canvas.corrections < sampling.corrections:
                is_kept = canvas.rewind(sampling.corrected_from, self.schedule)
            place = slots[fits] + 1 + np.arange(int(fits.sum()))
            removed = np.flatnonzero(~is_kept)
            changes.append(Change.of(canvas, place, tokens[drawn][fits], probs[drawn][fits], removed))
        return changes

    def goes_on(self, canvas: Canvas) -> bool:
        """Begin the next block, if there is one."""
        block = canvas.tokens[canvas.block_ends[-1] :]
        is_over = len(block) == 0 or canvas.hit_cap or self.tokenizer.eos in block
        if len(canvas.block_ends) >= self.sampling.blocks or is_over:
            return False
        canvas.begin_block()
        return True

    def steps_left(self, canvas: Canvas) -> int:
        """See `Canvas.steps_left`."""
        return canvas.steps_left(self.sampling)


def draw_fires(
    canvases: list[Canvas], prediction: Prediction, sampling: SamplingConfig, schedule: KeepSchedule
) -> list[Bool[np.ndarray, "n"]]:
    """Per document, which of its slots get a token in this step."""
    num_slots = [len(canvas.tokens) for canvas in canvases]
    assert prediction.zero_logit is not None, "a model without insertion heads"
    assert prediction.log_rate is not None, "a model without insertion heads"
    filled_prob = torch.sigmoid(-prediction.zero_logit.double()).cpu().numpy()
    rate = prediction.log_rate.double().clamp(0.0, MAX_LOG_RATE).exp().cpu().numpy()
    fires, first = [], 0
    for canvas, count in zip(canvases, num_slots, strict=True):
        slots = np.arange(first, first + count)[canvas.is_open]
        first += count
        if not canvas.is_writing:
            fires.append(np.zeros(count, dtype=bool))
            continue
        filled, size = filled_prob[slots], rate[slots]
        if sampling.clock_share:
            num_written = int((~canvas.is_given).sum())
            keep_prob = schedule.keep_prob(canvas.text_time)
            filled, size = at_time(filled, size, num_written, keep_prob, sampling.clock_share)
        canvas.lengths = (*canvas.lengths, (count, count + float((filled * size).sum())))
        prob = np.zeros(count)
        q = schedule.insertion_prob(canvas.text_time, step_size(canvas, sampling))
        prob[canvas.is_open] = filled * np.minimum(1.0, q * size)
        is_alone = sampling.firing == "independent"
        fires.append(canvas.rng.random(count) < prob if is_alone else draw_systematically(prob, canvas.rng))
    return fires
