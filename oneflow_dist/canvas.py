"""A document while it is being generated: tokens that stand, pieces on their own clocks."""

# Shapes: n tokens, k insertions, i pieces, p patches of E elements of one document and modality.

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
from jaxtyping import Bool, Float32, Int64

from oneflow_dist.containers import Bags, NoisySample, Pieces, Sample
from oneflow_dist.data.codec import check_sides, cut_pieces, to_latents
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import gaussian, is_deletable
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.making import MOVING_TOLERANCE, Making
from oneflow_dist.modality import Modalities, ModalityConfig
from oneflow_dist.sampling import SamplingConfig

HOLE = "<|hole|>"

# A token id; `...`: a hole, where tokens may be inserted; or a modality's name with a clean latent, with None: a piece
# to make from noise, or with a latent and a time: one to make from what that looks like then.
PromptPart = int | EllipsisType | tuple[str, np.ndarray | None] | tuple[str, np.ndarray, float]
Prompt = Sequence[PromptPart]


@dataclass(slots=True, kw_only=True)
class Canvas:
    """The state of one generation. Arrays are replaced, never changed in place, so a shallow copy is a snapshot."""

    key: str
    rng: np.random.Generator
    text_time: float
    tokens: Int64[np.ndarray, "n"]
    is_open: Bool[np.ndarray, "n"]  # may tokens be inserted after this one?
    born: Int64[np.ndarray, "n"]  # step at which each token appeared; 0: it was there
    making: Mapping[str, Making]  # by modality
    block_ends: tuple[int, ...]  # tokens before the end of each finished block; the prompt in front is the first
    num_steps: int = 0  # that it has taken
    corrections: int = 0  # how often the text was taken back
    hit_cap: bool = False  # an insertion was refused because the document was full
    lengths: tuple[tuple[int, float], ...] = ()  # before each step of the text: tokens, and how many are expected

    @property
    def is_moving(self) -> bool:
        """Whether a piece is still being made."""
        return any(making.is_moving.any() for making in self.making.values())

    @property
    def is_writing(self) -> bool:
        """Whether text can still appear."""
        return self.text_time < 1.0 - MOVING_TOLERANCE

    @property
    def is_done(self) -> bool:
        return not self.is_writing and not self.is_moving

    @property
    def grows_at_end(self) -> bool:
        """Whether nothing is to be made before the end, as where a block is begun."""
        return not self.is_open[:-1].any() and not self.is_moving

    @property
    def is_given(self) -> Bool[np.ndarray, "n"]:
        """Which tokens were there when the block that is being written was begun."""
        return (self.born == 0) | (np.arange(len(self.tokens)) < self.block_ends[-1])

    @property
    def expected_length(self) -> float:
        """How many tokens the document may have in the end, as far as the model could tell before the last step."""
        return self.lengths[-1][1] if self.is_writing and self.lengths else float(len(self.tokens))

    @property
    def num_rows(self) -> int:
        """Trunk rows that the document takes now."""
        return len(self.tokens) + sum(len(making.pieces.patches) for making in self.making.values())

    def snapshot(self) -> NoisySample:
        """What the network sees: the same type that training noises samples into."""
        is_given, nothing = self.is_given, np.zeros(0, dtype=np.int64)
        for making in self.making.values():
            is_given[making.pieces.token[making.is_target]] = False
        return NoisySample(
            key=self.key,
            tokens=self.tokens,
            is_given=is_given,
            is_open=self.is_open & self.is_writing,
            bags=Bags.of_tokens(nothing, nothing, len(self.tokens)),
            pieces=tuple(making.noisy() for making in self.making.values()),
            text_time=min(1.0, self.text_time),
            block_ends=self.block_ends,
        )

    def copy(self) -> Canvas:
        """The document as it stands now, for looking at: later steps do not change it."""
        return copy.copy(self)

    def advance(
        self,
        velocities: Sequence[Float32[np.ndarray, "_ _"]],
        step_size: float | None,
        sampling: SamplingConfig,
        step: int,
    ) -> None:
        """Move every moving piece along its velocity, and the clocks of text and moving pieces.

        Args:
            step_size: of the text, with which all clocks go while it is written; then pieces have their own. None: the
                text waits.
        """
        with_text, making = step_size if self.is_writing else None, {}
        shift = sampling.shift if with_text is None else 1.0  # pieces that go with the text do as in training
        for (kind, of_kind), velocity in zip(self.making.items(), velocities, strict=True):
            own = 1.0 / sampling.steps_of(kind) if with_text is None else with_text
            making[kind] = of_kind.advance(velocity, own, shift, sampling, self.rng, step)
        self.making = making
        self.text_time = min(1.0, self.text_time + (step_size or 0.0))

    def insert(self, slots: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], step: int) -> None:
        """Insert a token after each of `slots`, ascending indices before any insertion; those of pieces spawn noise."""
        if len(slots) == 0:
            return
        self.tokens = np.insert(self.tokens, slots + 1, tokens)
        self.born = np.insert(self.born, slots + 1, step)
        self.is_open = np.insert(self.is_open, slots + 1, True)
        self.making = {kind: making.insert(slots, tokens, self.rng) for kind, making in self.making.items()}

    def replace(self, places: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], step: int) -> None:
        """Put tokens in the place of others, where nothing more is written then; those of pieces spawn noise."""
        self.tokens, self.born, self.is_open = self.tokens.copy(), self.born.copy(), self.is_open.copy()
        self.tokens[places], self.born[places], self.is_open[places] = tokens, step, False
        self.making = {kind: making.spawn(places, tokens, self.rng) for kind, making in self.making.items()}

    def remove(self, is_removed: Bool[np.ndarray, "n"]) -> None:
        """Take out some tokens, with their pieces."""
        self.tokens, self.born = self.tokens[~is_removed], self.born[~is_removed]
        self.is_open = self.is_open[~is_removed]
        self.making = {kind: making.keep(~is_removed) for kind, making in self.making.items()}

    def rewind(self, text_time: float, schedule: KeepSchedule) -> Bool[np.ndarray, "n"]:
        """Noise what was written back to an earlier text time; what is written on from there may come out better.

        A token stays with the probability that it was there before, given that it is there now; a piece, if it is old
        enough. So of documents that follow the law of the data at one time this makes those of the other.

        Returns:
            Which tokens stay.
        """
        way, keep_prob = self.text_time - text_time, schedule.keep_prob(text_time) / schedule.keep_prob(self.text_time)
        was_given = self.is_given
        is_kept = was_given | (self.rng.random(len(self.tokens)) < keep_prob)
        for making in self.making.values():
            is_kept[making.pieces.token] = was_given[making.pieces.token] | (making.clock() >= way)
        self.making = {
            kind: making.rewind(way, ~was_given[making.pieces.token], is_kept, self.rng)
            for kind, making in self.making.items()
        }
        self.tokens, self.is_open, self.born = self.tokens[is_kept], self.is_open[is_kept], self.born[is_kept]
        self.text_time, self.corrections = text_time, self.corrections + 1
        return is_kept

    def begin_block(self) -> None:
        """What stands there becomes prompt, and the document goes on at its end."""
        self.is_open = np.arange(len(self.tokens)) == len(self.tokens) - 1
        self.making = {
            kind: replace(making, is_target=np.zeros_like(making.is_target), half=None)
            for kind, making in self.making.items()
        }
        self.block_ends = (*self.block_ends, len(self.tokens))
        self.text_time, self.corrections = 0.0, 0

    def steps_left(self, sampling: SamplingConfig) -> int:
        """At most: a piece that appears in the last step of the text takes as many again."""
        if self.is_writing:
            passes = [self.text_time, *[sampling.corrected_from] * (sampling.corrections - self.corrections)]
            of_pieces = [sampling.steps_of(kind) for kind, making in self.making.items() if making.modality.is_target]
            return math.ceil(sum(map(sampling.steps_after, passes)) - 1e-6) + max(of_pieces, default=0)
        return self.piece_steps_left(sampling)

    def piece_steps_left(self, sampling: SamplingConfig) -> int:
        """Where no text is written meanwhile."""
        rest = [making.clock_left(sampling.shift) * sampling.steps_of(kind) for kind, making in self.making.items()]
        return math.ceil(max(rest, default=0.0) - 1e-6)  # clocks are sums of 1/N

    def latents(self, kind: str) -> list[Float32[np.ndarray, "C *_"]]:
        """The pieces of a modality as they stand now, each of its own shape."""
        return self.making[kind].latents()

    @property
    def piece_at(self) -> dict[int, tuple[str, int]]:
        """Modality and number of the piece that a token is."""
        return {
            int(token): (kind, number)
            for kind, making in self.making.items()
            for number, token in enumerate(making.pieces.token)
        }

    def as_prompt(self) -> list[PromptPart]:
        """What stands here, as `blank_canvas` takes it: to be edited as a list, all that stays to the bit as it is."""
        return _parts_of(self.tokens, [(kind, m.modality, m.pieces) for kind, m in self.making.items()])[1:]

    def parts(self, tokenizer: Tokenizer, after_prompt: int = 0) -> list[str | tuple[str, int]]:
        """The document as a reader sees it: stretches of text, and modality and number of pieces; BOS left out.

        Args:
            after_prompt: how many tokens after BOS are left out, too.
        """
        at = {token: piece for token, piece in self.piece_at.items() if token > after_prompt}
        found: list[str | tuple[str, int]] = []
        for before, after in itertools.pairwise([after_prompt, *sorted(at), len(self.tokens)]):
            found += [at[before]] if before in at else []
            between = self.tokens[before + 1 : after]
            text = tokenizer.decode(between[between != tokenizer.eos].tolist()).strip()
            found += [text] if text else []
        return found


def parse_prompt(text: str, tokenizer: Tokenizer) -> list[PromptPart]:
    """Token ids of a prompt; a modality's token in it, as "<|image|>", is a piece to make, "<|hole|>" a hole."""
    marks = {tokenizer.decode([token]): (kind, None) for kind, token in tokenizer.piece_of.items()}
    prompt: list[PromptPart] = []
    for part in re.split("|".join(f"({re.escape(mark)})" for mark in (*marks, HOLE)), text):
        if part == HOLE:
            prompt.append(...)
        elif part in marks:
            prompt.append(marks[part])
        elif part:
            prompt += tokenizer.encode(part)
    return prompt


def prompt_of(sample: Sample, modalities: Modalities) -> list[PromptPart]:
    """A sample as `blank_canvas` takes it: targets are holes, or pieces to make if they are there from the start."""
    pieces = [(*pair, own) for pair, own in zip(modalities.items(), sample.pieces, strict=True)]
    marks = zip(_parts_of(sample.tokens, pieces), sample.is_target.tolist(), is_deletable(sample).tolist(), strict=True)
    prompt: list[PromptPart] = []
    for part, is_target, is_missing in [*marks][1:]:
        if not is_missing:
            prompt.append((part[0], None) if is_target and isinstance(part, tuple) else part)
        elif not prompt or prompt[-1] is not ...:
            prompt.append(...)
    return prompt


def _parts_of(tokens: Int64[np.ndarray, "n"], pieces: Sequence[tuple[str, ModalityConfig, Pieces]]) -> list[PromptPart]:
    """Tokens, and in their place the latents of those that are pieces."""
    parts: list[PromptPart] = [*tokens.tolist()]
    for kind, modality, own in pieces:
        for token, latent in zip(own.token.tolist(), to_latents(own, modality), strict=True):
            parts[token] = (kind, latent)
    return parts


def blank_canvas(prompt: Prompt, tokenizer: Tokenizer, modalities: Modalities, seed: int, index: int) -> Canvas:
    """A canvas with a prompt and nothing else.

    Args:
        prompt: what follows BOS. Text is written in its holes. Without any it is written at the end, unless there is a
            piece to make: then everything asked for is there.
        seed: with `index` the key of everything random about this document, whatever it is generated with.

    Raises:
        ValueError: a piece to make of a modality that is only ever given, or one of other channels or sides than its
            modality.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    tokens, is_open = [tokenizer.bos], [False]
    at: dict[str, list[int]] = {kind: [] for kind in modalities}
    pieces: dict[str, list[tuple[np.ndarray | None, float]]] = {kind: [] for kind in modalities}
    for part in prompt:
        if part is ...:
            is_open[-1] = True
            continue
        if isinstance(part, tuple):
            kind, latent, time = (*part, float(part[1] is not None))[:3]
            _check_piece(kind, latent, time, modalities[kind])
            at[kind].append(len(tokens))
            pieces[kind].append((latent, time))
        tokens.append(part if isinstance(part, int) else tokenizer.piece_of[kind])
        is_open.append(False)
    is_target = np.zeros(len(tokens), dtype=bool)
    making = {}
    for kind, modality in modalities.items():
        time = np.array([time for _, time in pieces[kind]], dtype=np.float64)
        is_target[at[kind]] = time < 1.0
        noisy = [_noisy(latent, time, modality, rng) for latent, time in pieces[kind]]
        making[kind] = Making(
            modality=modality,
            token=tokenizer.piece_of[kind],
            pieces=replace(cut_pieces(noisy, at[kind], modality), time=time),
            is_target=time < 1.0,
            end=np.zeros(len(noisy), dtype=np.int64),
        )
    if not any(is_open):
        is_open[-1] = not is_target.any()
    is_behind = np.append(False, is_open) | np.append(is_target, True)  # what is made, or comes after an open slot
    return Canvas(
        key=f"canvas-{index}",
        rng=rng,
        text_time=0.0 if any(is_open) else 1.0,
        tokens=np.array(tokens, dtype=np.int64),
        is_open=np.array(is_open),
        born=np.zeros(len(tokens), dtype=np.int64),
        making=making,
        block_ends=(int(is_behind.argmax()),),
    )


def _noisy(
    latent: Float32[np.ndarray, "C *_"] | None, time: float, modality: ModalityConfig, rng: np.random.Generator
) -> Float32[np.ndarray, "C *_"]:
    """A piece as it looks at a time: noise, clean, or between."""
    if latent is None:
        return gaussian(rng, (modality.channels, *modality.shape))
    if time == 1.0:
        return latent
    return np.float32(time) * latent + np.float32(1.0 - time) * gaussian(rng, latent.shape)


def _check_piece(kind: str, latent: Float32[np.ndarray, "C *_"] | None, time: float, modality: ModalityConfig) -> None:
    """Refuse a piece that a model cannot have been trained with."""
    if time < 1.0 and not modality.is_target:
        raise ValueError(f"{modality.token}: modality.{kind} is only ever given; leave it out, or give one")
    if not 0.0 <= time <= 1.0:
        raise ValueError(f"{modality.token}: a time of {time}, which goes from 0 (noise) to 1 (clean)")
    if latent is not None and modality.understanding != "live":
        if len(latent) != modality.channels:
            raise ValueError(
                f"{modality.token}: a piece of {len(latent)} channels, but modality.{kind}.channels is "
                f"{modality.channels}; encode it with the codec of the model"
            )
        check_sides(latent.shape[1:], modality, modality.token)
