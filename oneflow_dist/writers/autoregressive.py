"""Text token by token, pieces by flow where their turn comes."""

# Shapes: n tokens, p patches of E elements of one document and modality.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32

from oneflow_dist.baselines.autoregressive import copy_ends, insert_ends
from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, Pieces, Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.writers.drawing import draw_tokens, probs_of
from oneflow_dist.writers.writer import Change, find_room, velocities_of


class AutoRegressive:
    """A step is the next token of a document, or one of the flow of the piece that stands at its end.

    `<|eos|>` ends a document, or the end of its rows. Rows that are done are computed once, see `Forward`.

    Source: arXiv:2408.11039, section 3.3.
    """

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer):
        self.model, self.sampling, self.tokenizer = model, config.sampling, tokenizer
        self.copies_pieces = config.objective.copies_pieces

    def begin(self, canvas: Canvas) -> None:
        """Refuse what is to be made anywhere but at the end."""
        at_end = np.arange(len(canvas.tokens)) == len(canvas.tokens) - 1
        moving = [making.pieces.token[making.is_moving] for making in canvas.making.values()]
        if (canvas.is_open & ~at_end).any() or not all(at_end[token].all() for token in moving):
            raise ValueError(
                f"{canvas.key}: its prompt has a hole or a piece to make before its end, but an autoregressive model "
                "writes from left to right: leave it out, or put it last"
            )

    def snapshot(self, canvas: Canvas) -> NoisySample:
        """With the ends of pieces that are done, and their copies, as samples have them."""
        sample, continues = canvas.snapshot(), bool(canvas.is_open[-1])
        pieces = [noisy.pieces for noisy in sample.pieces]
        is_done = [~noisy.is_moving for noisy in sample.pieces]
        last = len(sample.tokens) - (not continues)
        has_end = [done & (own.token < last) for own, done in zip(pieces, is_done, strict=True)]
        has_copy = [making.is_target & self.copies_pieces for making in canvas.making.values()]
        tokens, place, joined = insert_ends(sample.tokens, pieces, has_end, has_copy, self.tokenizer.mark)
        noisy = [self._noisy(own, tokens, done) for own, done in zip(joined, is_done, strict=True)]
        nothing, written = np.zeros(0, dtype=np.int64), place[~sample.is_given]
        return replace(
            sample,
            tokens=tokens,
            is_given=np.arange(len(tokens)) < min(written, default=len(tokens)),
            is_open=(np.arange(len(tokens)) == len(tokens) - 1) & canvas.is_writing & (not canvas.is_moving),
            bags=Bags.of_tokens(nothing, nothing, len(tokens)),
            pieces=tuple(noisy),
            text_time=0.0,
            block_ends=copy_ends(tokens, noisy, self.tokenizer.mark),
        )

    def _noisy(self, pieces: Pieces, tokens: np.ndarray, is_done: np.ndarray) -> NoisyPieces:
        is_moving = np.zeros(len(pieces), dtype=bool)
        is_moving[tokens[pieces.token] != self.tokenizer.mark] = ~is_done
        return NoisyPieces(pieces=pieces, velocity=pieces.still(), is_moving=is_moving)

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """See `Writer.step`."""
        sampling = self.sampling
        last = np.cumsum([len(sample.tokens) for sample in samples]) - 1
        writes = [bool(sample.is_open[-1]) for sample in samples]
        hidden = prediction.slot_hidden[torch.from_numpy(last[writes]).to(prediction.slot_hidden.device)]
        generators = [canvas.rng for canvas, does in zip(canvases, writes, strict=True) if does]
        tokens = draw_tokens(self.model, hidden, generators, sampling, self.tokenizer.vocab_size)
        drawn = iter(zip(tokens, probs_of(self.model, hidden, tokens), strict=True))
        changes, nothing = [], np.zeros(0, dtype=np.int64)
        for canvas, sample, does, velocities in zip(
            canvases, samples, writes, velocities_of(samples, prediction), strict=True
        ):
            if does:
                changes.append(self._append(canvas, *next(drawn)))
            else:
                canvas.advance(_of_canvas(canvas, sample, velocities), None, sampling, canvas.num_steps)
                changes.append(Change.of(canvas, nothing, nothing, np.zeros(0), nothing))
        return changes

    def _append(self, canvas: Canvas, token: np.int64, prob: np.floating) -> Change:
        tokens, slots = np.array([token]), np.array([len(canvas.tokens) - 1])
        fits = find_room(canvas, tokens, self.sampling.max_rows)
        canvas.insert(slots[fits], tokens[fits], canvas.num_steps)
        canvas.is_open = np.arange(len(canvas.tokens)) == len(canvas.tokens) - 1
        if not fits[0] or token == self.tokenizer.eos:
            canvas.text_time = 1.0
        return Change.of(canvas, slots[fits] + 1, tokens[fits], np.array([prob])[fits], slots[:0])

    def goes_on(self, canvas: Canvas) -> bool:
        """Never."""
        return False

    def steps_left(self, canvas: Canvas) -> int:
        """Of the piece; and of the text as many tokens as it has now."""
        return canvas.piece_steps_left(self.sampling) + len(canvas.tokens) * canvas.is_writing


def _of_canvas(
    canvas: Canvas, sample: NoisySample, velocities: Sequence[Float32[np.ndarray, "_ E"]]
) -> list[Float32[np.ndarray, "_ E"]]:
    """Velocities of a document's own pieces, among which the snapshot has copies; of those that stand still zeros."""
    found = []
    for making, noisy, velocity in zip(canvas.making.values(), sample.pieces, velocities, strict=True):
        own = np.zeros((len(making.pieces.patches), velocity.shape[1]), dtype=np.float32)
        own[making.pieces.per_patch(making.is_moving)] = velocity[noisy.pieces.per_patch(noisy.is_moving)]
        found.append(own)
    return found
