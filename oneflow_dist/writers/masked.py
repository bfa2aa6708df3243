"""Text by masks: a canvas of a given length, of which each step makes some tokens known."""

# Shapes: n tokens of one document, h of them hidden.

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.writers.drawing import draw_tokens, probs_of
from oneflow_dist.writers.writer import Change, find_room, step_size, velocities_of


class Masked:
    """A hole begins as so many masks as its text may be long; what follows its first `<|eos|>` is taken out at the end.

        random          each mask goes with the chance of the step, (1 - kappa(s)) / (1 - kappa(t)) of them stay
        low_confidence  as many go as are expected, those whose drawn tokens are the most probable

    With `blocks` the masks of a hole go from left to right, in so many equal parts, each of which takes its part of the
    steps. A mask that becomes the token of a piece spawns noise, as in OneFlow; where there is no room for it the mask
    becomes `<|eos|>`.

    Source: arXiv:2502.09992, section 2.4, Algorithms 4 and 5 and appendix B.4.
    """

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer):
        self.model, self.sampling, self.tokenizer = model, config.sampling, tokenizer
        self.schedule = KeepSchedule.of(config.flow)
        self.canvas_tokens = config.sampling.canvas_tokens or config.objective.canvas_tokens
        self.blocks = max(1, config.sampling.blocks)

    def begin(self, canvas: Canvas) -> None:
        """Fill its holes with masks."""
        if canvas.is_open.any() and not self.canvas_tokens:
            raise ValueError(
                "sampling.canvas_tokens: is 0, but a masked model has to be told how long a text may be; set it, as 32"
            )
        slots = np.flatnonzero(canvas.is_open).repeat(self.canvas_tokens)
        if canvas.num_rows + len(slots) > self.sampling.max_rows:
            raise ValueError(
                f"sampling.max_rows: is {self.sampling.max_rows}, but a prompt and the masks of its holes need "
                f"{canvas.num_rows + len(slots)} rows; raise it, or lower sampling.canvas_tokens"
            )
        canvas.insert(slots, np.full(len(slots), self.tokenizer.mark), step=1)
        canvas.is_open = canvas.tokens == self.tokenizer.mark

    def snapshot(self, canvas: Canvas) -> NoisySample:
        """As it stands."""
        return canvas.snapshot()

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """See `Writer.step`."""
        hidden = [np.flatnonzero(sample.is_open) for sample in samples]
        first = np.cumsum([0, *(len(sample.tokens) for sample in samples)])
        rows = np.concatenate([own + start for own, start in zip(hidden, first, strict=False)])
        slot_hidden = prediction.slot_hidden[torch.from_numpy(rows).to(prediction.slot_hidden.device)]
        generators = [canvas.rng for canvas, own in zip(canvases, hidden, strict=True) for _ in own]
        tokens = draw_tokens(self.model, slot_hidden, generators, self.sampling, self.tokenizer.vocab_size)
        probs = probs_of(self.model, slot_hidden, tokens)
        ends = np.cumsum([len(own) for own in hidden])[:-1]
        drawn = zip(np.split(tokens, ends), np.split(probs, ends), strict=True)
        changes = []
        for canvas, own, (token, prob), velocities in zip(
            canvases, hidden, drawn, velocities_of(samples, prediction), strict=True
        ):
            goes = self._choose(canvas, own, prob)
            canvas.advance(velocities, step_size(canvas, self.sampling), self.sampling, canvas.num_steps)
            changes.append(self._reveal(canvas, own[goes], token[goes], prob[goes]))
        return changes

    def _choose(
        self, canvas: Canvas, hidden: Int64[np.ndarray, "h"], prob: Float[np.ndarray, "h"]
    ) -> Bool[np.ndarray, "h"]:
        """Which masks go in this step: of the part of each hole whose turn it is."""
        if len(hidden) == 0:
            return np.zeros(0, dtype=bool)
        begin, end = canvas.text_time, canvas.text_time + step_size(canvas, self.sampling)
        written = np.flatnonzero(~canvas.is_given)
        holes = np.cumsum(np.diff(written, prepend=written[0]) > 1)
        place = np.arange(len(written)) - np.searchsorted(holes, holes)
        part = (place * self.blocks // np.bincount(holes)[holes])[np.searchsorted(written, hidden)]
        # A part is written from the time part / blocks on; its own time goes from 0 to 1 by (part + 1) / blocks.
        left_before, left_after = (
            np.array([1.0 - self.schedule.keep_prob(min(1.0, max(0.0, time * self.blocks - own))) for own in part])
            for time in (begin, min(1.0, end + 1e-9))
        )
        chance = 1.0 - left_after / np.maximum(left_before, 1e-12)
        if self.sampling.remasking == "random":
            return canvas.rng.random(len(hidden)) < chance
        # As many of each part as are expected; the fraction that is left decides by a draw.
        goes = np.zeros(len(hidden), dtype=bool)
        for number in np.unique(part):
            own = np.flatnonzero(part == number)
            count = int(chance[own].sum() + canvas.rng.random())
            goes[own[np.argsort(-prob[own], kind="stable")[:count]]] = True
        return goes

    def _reveal(
        self,
        canvas: Canvas,
        places: Int64[np.ndarray, "k"],
        tokens: Int64[np.ndarray, "k"],
        probs: Float[np.ndarray, "k"],
    ) -> Change:
        """Tokens in the place of masks; a reader of the change knows of no masks."""
        fits = find_room(canvas, tokens, self.sampling.max_rows)
        tokens = np.where(fits, tokens, self.tokenizer.eos)
        canvas.replace(places, tokens, canvas.num_steps)
        is_known = canvas.tokens != self.tokenizer.mark
        place = (is_known.cumsum() - 1)[places]
        is_removed = np.zeros(len(canvas.tokens), dtype=bool)
        if not canvas.is_writing:
            is_removed = self._behind_ends(canvas)
        removed = (is_known.cumsum() - 1)[is_removed & is_known]
        canvas.remove(is_removed)
        return Change.of(canvas, place, tokens, probs, removed)

    def _behind_ends(self, canvas: Canvas) -> Bool[np.ndarray, "n"]:
        """What was written in a hole behind its first `<|eos|>`."""
        has_ended, is_removed = False, np.zeros(len(canvas.tokens), dtype=bool)
        for number, (token, is_given) in enumerate(zip(canvas.tokens, canvas.is_given, strict=True)):
            is_removed[number] = has_ended and not is_given
            has_ended = not is_given and (has_ended or bool(token == self.tokenizer.eos))
        return is_removed

    def goes_on(self, canvas: Canvas) -> bool:
        """Never: all there may be of a text was there from the start."""
        return False

    def steps_left(self, canvas: Canvas) -> int:
        """See `Canvas.steps_left`."""
        return canvas.steps_left(self.sampling)
