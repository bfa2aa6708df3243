"""A document while it is being generated: tokens that stand, pieces on their own clocks."""

# Shapes: n tokens, k insertions, i pieces, p patches of E elements of one document and modality.

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
from jaxtyping import Bool, Float32, Int64

from oneflow_dist.containers import NoisyPieces, NoisySample, Pieces, Sample
from oneflow_dist.data.codec import cut_pieces, to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import gaussian
from oneflow_dist.flow.times import TimeLaw
from oneflow_dist.modality import Modalities, ModalityConfig

MOVING_TOLERANCE = 1e-9  # clocks are sums of 1/N
HOLE = "<|hole|>"

# A token id, `...`: a hole, where text may be written, or a modality's name with a clean latent, or with None: a piece
# to make.
PromptPart = int | EllipsisType | tuple[str, np.ndarray | None]
Prompt = Sequence[PromptPart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """The pieces of one modality, given, in the making or done."""

    modality: ModalityConfig
    token: int
    pieces: Pieces
    is_target: Bool[np.ndarray, "i"]
    end: Int64[np.ndarray, "i"]  # step at which each was finished; 0: it was given, or is not finished yet

    @property
    def is_moving(self) -> Bool[np.ndarray, "i"]:
        """Those that are still being made."""
        return self.is_target & (self.pieces.time < 1.0 - MOVING_TOLERANCE)

    @property
    def clock_left(self) -> float:
        """How far the clock of the one that ends last has to go; 0 if none is moving."""
        clock = TimeLaw.of(self.modality).clock(self.pieces.time, self.pieces)
        return float((1.0 - clock[self.is_moving]).max(initial=0.0))

    def noisy(self) -> NoisyPieces:
        """As the network sees them."""
        now = replace(self.pieces, time=np.minimum(1.0, self.pieces.time))
        return NoisyPieces(pieces=now, velocity=now.still(), is_moving=self.is_moving)

    def advance(self, velocity: Float32[np.ndarray, "p _"], step_size: float, step: int) -> Making:
        """Moved along their velocity, those that move."""
        pieces, was_moving = self.pieces, self.is_moving
        if not was_moving.any():
            return self
        way = TimeLaw.of(self.modality).step(pieces.time, step_size, pieces)
        steps = np.where(was_moving, way, 0.0)
        moved = pieces.patches + pieces.per_patch(steps.astype(np.float32))[:, None] * velocity
        after = replace(self, pieces=replace(pieces, time=pieces.time + steps, patches=moved))
        return replace(after, end=np.where(was_moving & ~after.is_moving, step, self.end))

    def insert(self, slots: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], rng: np.random.Generator) -> Making:
        """After tokens have been inserted behind `slots`; a token of this modality spawns noise."""
        # A token moves by as many places as there are insertions before it, and so does a token that is inserted.
        old = self.pieces.token + np.searchsorted(slots, self.pieces.token)
        new = (slots + 1 + np.arange(len(slots)))[tokens == self.token]
        if len(new) == 0:
            return replace(self, pieces=replace(self.pieces, token=old))
        noise = gaussian(rng, (len(new), self.modality.channels, *self.modality.shape))
        born = cut_pieces(list(noise), new.tolist(), self.modality)
        before = self.pieces
        pieces = replace(
            before,
            token=np.append(old, new),
            time=np.append(before.time, np.zeros(len(new))),
            grid=np.concatenate([before.grid, born.grid]),
            stride=np.append(before.stride, born.stride),
            patches=np.concatenate([before.patches, born.patches]),
        )
        order = np.argsort(pieces.token)
        return replace(
            self,
            pieces=pieces.take(order),
            is_target=np.append(self.is_target, np.ones(len(new), dtype=bool))[order],
            end=np.append(self.end, np.zeros(len(new), dtype=np.int64))[order],
        )

    def latents(self) -> list[Float32[np.ndarray, "C *_"]]:
        """The pieces as they stand now, each of its own shape."""
        ends = np.cumsum(self.pieces.num_patches)[:-1]
        patches = np.split(self.pieces.patches, ends) if len(self.pieces) else []
        grids = self.pieces.grid.tolist()
        return [to_latent(part, grid, self.modality) for part, grid in zip(patches, grids, strict=True)]


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
    hit_cap: bool = False  # an insertion was refused because the document was full

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
    def num_rows(self) -> int:
        """Trunk rows that the document takes now."""
        return len(self.tokens) + sum(len(making.pieces.patches) for making in self.making.values())

    def snapshot(self) -> NoisySample:
        """What the network sees: the same type that training noises samples into."""
        return NoisySample(
            key=self.key,
            tokens=self.tokens,
            is_open=self.is_open & self.is_writing,
            bag_tokens=np.zeros(0, dtype=np.int64),
            bag_slot=np.zeros(0, dtype=np.int64),
            pieces=tuple(making.noisy() for making in self.making.values()),
            text_time=min(1.0, self.text_time),
        )

    def copy(self) -> Canvas:
        """The document as it stands now, for looking at: later steps do not change it."""
        return copy.copy(self)

    def advance(self, velocities: Sequence[Float32[np.ndarray, "_ _"]], step_size: float, step: int) -> None:
        """Move every moving piece along its velocity, and the clocks of text and moving pieces."""
        pairs = zip(self.making.items(), velocities, strict=True)
        self.making = {kind: making.advance(velocity, step_size, step) for (kind, making), velocity in pairs}
        self.text_time = min(1.0, self.text_time + step_size)

    def insert(self, slots: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], step: int) -> None:
        """Insert a token after each of `slots`, ascending indices before any insertion; those of pieces spawn noise."""
        if len(slots) == 0:
            return
        self.tokens = np.insert(self.tokens, slots + 1, tokens)
        self.born = np.insert(self.born, slots + 1, step)
        self.is_open = np.insert(self.is_open, slots + 1, True)
        self.making = {kind: making.insert(slots, tokens, self.rng) for kind, making in self.making.items()}

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

    def parts(self, tokenizer: Tokenizer, after_prompt: int = 0) -> list[str | tuple[str, int]]:
        """The document as a reader sees it: stretches of text, and modality and number of pieces; BOS left out.

        Args:
            after_prompt: how many tokens after BOS are left out, too.
        """
        at = {token: piece for token, piece in self.piece_at.items() if token > after_prompt}
        found: list[str | tuple[str, int]] = []
        for before, after in itertools.pairwise([after_prompt, *sorted(at), len(self.tokens)]):
            found += [at[before]] if before in at else []
            text = tokenizer.decode(self.tokens[before + 1 : after].tolist()).strip()
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
    """What of a sample is no target, as `blank_canvas` takes it; its targets stand at its end."""
    prompt: list[PromptPart] = [*sample.tokens[~sample.is_target].tolist()]
    for (kind, modality), pieces in zip(modalities.items(), sample.pieces, strict=True):
        given = pieces.select(~sample.is_target[pieces.token])
        patches = np.split(given.patches, np.cumsum(given.num_patches)[:-1]) if len(given) else []
        for token, part, grid in zip(given.token.tolist(), patches, given.grid.tolist(), strict=True):
            prompt[token] = (kind, to_latent(part, grid, modality))
    return prompt[1:]


def blank_canvas(prompt: Prompt, tokenizer: Tokenizer, modalities: Modalities, seed: int, index: int) -> Canvas:
    """A canvas with a prompt and nothing else.

    Args:
        prompt: what follows BOS. Text is written in its holes. Without any it is written at the end, unless a piece to
            make stands there: then everything asked for is there.
        seed: with `index` the key of everything random about this document, whatever it is generated with.

    Raises:
        ValueError: a piece to make of a modality that is only ever given.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    tokens, is_open = [tokenizer.bos], [False]
    at: dict[str, list[int]] = {kind: [] for kind in modalities}
    latents: dict[str, list[np.ndarray | None]] = {kind: [] for kind in modalities}
    for part in prompt:
        if part is ...:
            is_open[-1] = True
            continue
        if isinstance(part, tuple):
            kind, latent = part
            if latent is None and not modalities[kind].is_target:
                raise ValueError(
                    f"{modalities[kind].token}: modality.{kind} is only ever given; leave it out, or give one"
                )
            at[kind].append(len(tokens))
            latents[kind].append(latent)
        tokens.append(part if isinstance(part, int) else tokenizer.piece_of[kind])
        is_open.append(False)
    if not any(is_open):
        is_open[-1] = len(prompt) == 0 or not (isinstance(prompt[-1], tuple) and prompt[-1][1] is None)
    making = {}
    for kind, modality in modalities.items():
        shape = (modality.channels, *modality.shape)
        is_target = np.array([latent is None for latent in latents[kind]], dtype=bool)
        whole = [gaussian(rng, shape) if latent is None else latent for latent in latents[kind]]
        pieces = replace(cut_pieces(whole, at[kind], modality), time=np.where(is_target, 0.0, 1.0))
        end = np.zeros(len(whole), dtype=np.int64)
        making[kind] = Making(
            modality=modality, token=tokenizer.piece_of[kind], pieces=pieces, is_target=is_target, end=end
        )
    return Canvas(
        key=f"canvas-{index}",
        rng=rng,
        text_time=0.0 if any(is_open) else 1.0,
        tokens=np.array(tokens, dtype=np.int64),
        is_open=np.array(is_open),
        born=np.zeros(len(tokens), dtype=np.int64),
        making=making,
    )
