"""A document while it is being generated: tokens that stand, images on their own clocks."""

# Shapes: n tokens, k insertions, i images, p patches of E elements of one document; C H W latent.

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
from jaxtyping import Bool, Float32, Int64

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Images, NoisySample
from oneflow_dist.data.codec import cut_images, to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import gaussian

MOVING_TOLERANCE = 1e-9  # clocks are sums of 1/N

# A token id, a clean latent [C, H, W], `...`: a hole, where text may be written, or None: an image to paint.
Prompt = Sequence[int | np.ndarray | EllipsisType | None]


@dataclass(slots=True, kw_only=True)
class Canvas:
    """The state of one generation. Arrays are replaced, never changed in place, so a shallow copy is a snapshot."""

    key: str
    rng: np.random.Generator
    image: ImageConfig  # of an image to paint; given ones may have any shape
    text_time: float
    tokens: Int64[np.ndarray, "n"]
    is_open: Bool[np.ndarray, "n"]  # may tokens be inserted after this one?
    born: Int64[np.ndarray, "n"]  # step at which each token appeared; 0: it was there
    images: Images
    image_is_target: Bool[np.ndarray, "i"]
    image_end: Int64[np.ndarray, "i"]  # step at which each image was finished; 0: it was given, or is not finished yet
    hit_cap: bool = False  # an insertion was refused because the document was full

    @property
    def is_moving(self) -> Bool[np.ndarray, "i"]:
        """Images that are still being painted."""
        return self.image_is_target & (self.images.time < 1.0 - MOVING_TOLERANCE)

    @property
    def is_writing(self) -> bool:
        """Whether text can still appear."""
        return self.text_time < 1.0 - MOVING_TOLERANCE

    @property
    def is_done(self) -> bool:
        return not self.is_writing and not self.is_moving.any()

    @property
    def num_rows(self) -> int:
        """Trunk rows that the document takes now."""
        return len(self.tokens) + len(self.images.patches)

    def snapshot(self) -> NoisySample:
        """What the network sees: the same type that training noises samples into."""
        return NoisySample(
            key=self.key,
            tokens=self.tokens,
            is_open=self.is_open & self.is_writing,
            bag_tokens=np.zeros(0, dtype=np.int64),
            bag_slot=np.zeros(0, dtype=np.int64),
            images=replace(self.images, time=np.minimum(1.0, self.images.time)),
            velocity=np.zeros_like(self.images.patches),
            is_moving=self.is_moving,
            text_time=min(1.0, self.text_time),
        )

    def copy(self) -> Canvas:
        """The document as it stands now, for looking at: later steps do not change it."""
        return copy.copy(self)

    def advance(self, velocity: Float32[np.ndarray, "p E"], step_size: float, step: int) -> None:
        """Move every moving image along its velocity, and the clocks of text and moving images."""
        images, was_moving = self.images, self.is_moving
        steps = np.where(was_moving, np.minimum(step_size, 1.0 - images.time), 0.0)
        moved = images.patches + images.per_patch(steps.astype(np.float32))[:, None] * velocity
        self.images = replace(images, time=images.time + steps, patches=moved)
        self.image_end = np.where(was_moving & ~self.is_moving, step, self.image_end)
        self.text_time = min(1.0, self.text_time + step_size)

    def insert(
        self, slots: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], step: int, image_token: int
    ) -> None:
        """Insert a token after each of `slots`, ascending indices before any insertion; an image token spawns noise."""
        if len(slots) == 0:
            return
        self.tokens = np.insert(self.tokens, slots + 1, tokens)
        self.born = np.insert(self.born, slots + 1, step)
        self.is_open = np.insert(self.is_open, slots + 1, True)

        # A token moves by as many places as there are insertions before it, and so does a token that is inserted.
        old = self.images.token + np.searchsorted(slots, self.images.token)
        new = (slots + 1 + np.arange(len(slots)))[tokens == image_token]
        noise = gaussian(self.rng, (len(new) * self.image.num_rows, self.image.patch_elements))
        images = Images(
            token=np.append(old, new),
            time=np.append(self.images.time, np.zeros(len(new))),
            grid=np.concatenate([self.images.grid, np.tile(self.image.grid, (len(new), 1))]),
            patches=np.concatenate([self.images.patches, noise]),
        )
        order = np.argsort(images.token)
        self.images = images.take(order)
        self.image_is_target = np.append(self.image_is_target, np.ones(len(new), dtype=bool))[order]
        self.image_end = np.append(self.image_end, np.zeros(len(new), dtype=np.int64))[order]

    def latents(self) -> list[Float32[np.ndarray, "C _ _"]]:
        """The images as they stand now, each of its own shape."""
        ends = np.cumsum(self.images.num_patches).tolist()
        return [
            to_latent(self.images.patches[end - rows * columns : end], (rows, columns), self.image)
            for end, (rows, columns) in zip(ends, self.images.grid.tolist(), strict=True)
        ]

    def parts(self, tokenizer: Tokenizer) -> list[str | int]:
        """The document as a reader sees it: stretches of text, and indices of images; BOS left out."""
        found: list[str | int] = []
        edges = [0, *self.images.token.tolist(), len(self.tokens)]
        for number, (before, after) in enumerate(itertools.pairwise(edges)):
            text = tokenizer.decode(self.tokens[before + 1 : after].tolist()).strip()
            found += [text] if text else []
            found += [number] if number < len(self.images) else []
        return found


def parse_prompt(text: str, tokenizer: Tokenizer) -> list[int | EllipsisType | None]:
    """Token ids of a prompt; "<|image|>" in it is an image to paint, "<|hole|>" a hole."""
    marks: dict[str, EllipsisType | None] = {"<|image|>": None, "<|hole|>": ...}
    prompt: list[int | EllipsisType | None] = []
    for part in re.split(r"(<\|image\|>|<\|hole\|>)", text):
        prompt += [marks[part]] if part in marks else tokenizer.encode(part)
    return prompt


def blank_canvas(
    prompt: Prompt,
    tokenizer: Tokenizer,
    image: ImageConfig,
    seed: int,
    index: int,
) -> Canvas:
    """A canvas with a prompt and nothing else.

    Args:
        prompt: what follows BOS. Text is written in its holes. Without any it is written at the end, unless an image to
            paint stands there: then everything asked for is there.
        seed: with `index` the key of everything random about this document, whatever it is generated with.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    tokens, is_open, latents, image_at = [tokenizer.bos], [False], [], []
    for part in prompt:
        if part is ...:
            is_open[-1] = True
            continue
        if not isinstance(part, int):
            image_at.append(len(tokens))
            latents.append(part)
        tokens.append(part if isinstance(part, int) else tokenizer.image)
        is_open.append(False)
    if not any(is_open):
        is_open[-1] = len(prompt) == 0 or prompt[-1] is not None
    is_target = np.array([latent is None for latent in latents], dtype=bool)
    images = cut_images([gaussian(rng, image.shape) if x is None else x for x in latents], image_at, image)
    return Canvas(
        key=f"canvas-{index}",
        rng=rng,
        image=image,
        text_time=0.0 if any(is_open) else 1.0,
        tokens=np.array(tokens, dtype=np.int64),
        is_open=np.array(is_open),
        born=np.zeros(len(tokens), dtype=np.int64),
        images=replace(images, time=np.where(is_target, 0.0, 1.0)),
        image_is_target=is_target,
        image_end=np.zeros(len(images), dtype=np.int64),
    )
