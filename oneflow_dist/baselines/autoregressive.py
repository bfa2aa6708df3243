"""Text from left to right: what a sample becomes where each row says the next token."""

# Shapes: n tokens, m with ends, i pieces.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, Pieces, Sample
from oneflow_dist.flow.noising import WHOLE, Noising, Span, is_deletable, lose_condition, noise_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRegressive:
    """Transfusion: the bag of each row is the next token, and no row sees what follows, but for patches of its piece.

    A piece begins with its token and ends with a mark, from which the text goes on:

        text  <|image|> patches mark  text            with copies:  text  <|image|> noisy patches  clean patches mark

    The mark is never written and nobody predicts it. Where copies are asked for it is the token of the clean copy,
    which text behind it sees beside the noisy one; generation copies what it has made. Without, a piece that text
    follows has at most `context_noise`. `<|eos|>` ends what is written.

    Source: arXiv:2408.11039, sections 3.1 and 3.2 (one sequence, attention, losses) and 4.1 (noise before captions).
    """

    noising: Noising
    context_noise: float  # see [objective]
    copies_pieces: bool
    eos: int
    mark: int  # stands behind a piece that is done
    num_marks: int = 1
    refused_tasks: tuple[str, ...] = ("infill", "blocks")

    def prepare(self, sample: Sample) -> Sample:
        """With `<|eos|>`, if text is written, and the ends of all pieces that something follows."""
        if is_deletable(sample).any() and sample.tokens[-1] != self.eos:
            tokens, is_target = np.append(sample.tokens, self.eos), np.append(sample.is_target, True)
            sample = replace(sample, tokens=tokens, is_target=is_target)
        has_end = [pieces.token < len(sample.tokens) - 1 for pieces in sample.pieces]
        has_copy = [sample.is_target[pieces.token] & self.copies_pieces for pieces in sample.pieces]
        tokens, place, pieces = insert_ends(sample.tokens, sample.pieces, has_end, has_copy, self.mark)
        is_target = np.zeros(len(tokens), dtype=bool)
        is_target[place] = sample.is_target
        return replace(sample, tokens=tokens, is_target=is_target, pieces=pieces)

    def noise(self, sample: Sample, rng: np.random.Generator) -> NoisySample:
        """At random times of its pieces; some samples lose their condition."""
        draw = rng.random()
        noisy = lose_condition(self.look_at(sample, rng), draw, self.noising)
        return replace(noisy, block_ends=copy_ends(noisy.tokens, noisy.pieces, self.mark))

    def look_at(
        self, sample: Sample, rng: np.random.Generator, text_span: Span = WHOLE, piece_span: Span = WHOLE
    ) -> NoisySample:
        """All text, and each piece at a time of its own; text has none, so that `text_span` changes nothing."""
        tokens = sample.tokens
        is_said = is_deletable(sample).any() & sample.is_target & (tokens != self.mark)
        num_rows = len(tokens) - int(tokens[-1] == self.eos)  # what nothing follows is only said
        slot = np.flatnonzero(is_said[1:])
        noisy = []
        low, high = piece_span
        for pieces, law in zip(sample.pieces, self.noising.laws, strict=True):
            time = law.time(low + (high - low) * rng.random(len(pieces)), pieces)
            time = np.where(self._is_context(sample, pieces), 1.0 - self.context_noise * (1.0 - time), time)
            time[~sample.is_target[pieces.token]] = 1.0
            is_moving = sample.is_target[pieces.token] & (time < 1.0)
            noisy.append(noise_pieces(replace(pieces, time=time), is_moving, rng))
        return NoisySample(
            key=sample.key,
            tokens=tokens[:num_rows],
            is_given=np.arange(num_rows) < sample.front,
            is_open=np.append(is_said[1:], False)[:num_rows],
            bags=Bags.of_tokens(tokens[slot + 1], slot, num_rows),
            pieces=tuple(noisy),
            text_time=0.0,
            block_ends=copy_ends(tokens, noisy, self.mark),
        )

    def _is_context(self, sample: Sample, pieces: Pieces) -> Bool[np.ndarray, "i"]:
        """Which pieces are all that text behind them sees of what they show."""
        is_text = sample.is_target & (sample.tokens != self.eos) & (sample.tokens != self.mark)
        for others in sample.pieces:
            is_text[others.token] = False
        last = np.flatnonzero(is_text)[-1:].sum()
        return (pieces.token < last) & (not self.copies_pieces)


def insert_ends(
    tokens: Int64[np.ndarray, "n"],
    pieces: Sequence[Pieces],
    has_end: Sequence[Bool[np.ndarray, "_"]],
    has_copy: Sequence[Bool[np.ndarray, "_"]],
    mark: int,
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "n"], tuple[Pieces, ...]]:
    """A mark behind each piece that has an end, which is the token of a copy where it has one.

    Returns:
        The tokens, where each of the old ones stands, and the pieces with their copies, in order.
    """
    slots = np.sort(np.concatenate([tokens[:0], *(p.token[own] for p, own in zip(pieces, has_end, strict=True))]))
    place = np.arange(len(tokens)) + np.searchsorted(slots, np.arange(len(tokens)))
    found = []
    for own, is_ended, is_copied in zip(pieces, has_end, has_copy, strict=True):
        copies = own.select(is_ended & is_copied)
        both = replace(own, token=place[own.token]).join(replace(copies, token=place[copies.token] + 1))
        found.append(both.take(np.argsort(both.token)) if len(copies) else both)
    return np.insert(tokens, slots + 1, mark), place, tuple(found)


def copy_ends(tokens: Int64[np.ndarray, "n"], pieces: Sequence[NoisyPieces], mark: int) -> tuple[int, ...]:
    """Where copies end, whose patches come before their token: `block_ends` of a pack in which rows see their past."""
    at = np.concatenate([tokens[:0], *(noisy.pieces.token for noisy in pieces)])
    return tuple(int(end) + 1 for end in np.sort(at[tokens[at] == mark]))
