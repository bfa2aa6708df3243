"""A document while it is being generated: tokens that stand, images on their own clocks."""

# Shapes: n tokens, i images, p patches of E elements of one document; C H W latent.

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import NoisySample
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
    image_at: Int64[np.ndarray, "i"]
    patches: Float32[np.ndarray, "p E"]
    grid: Int64[np.ndarray, "i 2"]
    image_time: Float[np.ndarray, "i"]
    image_is_target: Bool[np.ndarray, "i"]
    image_end: Int64[np.ndarray, "i"]  # step at which each image was finished; 0: it was given, or is not finished yet
    hit_cap: bool = False  # an insertion was refused because the document was full

    @property
    def is_moving(self) -> Bool[np.ndarray, "i"]:
        """Images that are still being painted."""
        return self.image_is_target & (self.image_time < 1.0 - MOVING_TOLERANCE)

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
        return len(self.tokens) + len(self.patches)

    def snapshot(self) -> NoisySample:
        """What the network sees: the same type that training noises samples into."""
        return NoisySample(
            key=self.key,
            tokens=self.tokens,
            is_open=self.is_open & self.is_writing,
            image_at=self.image_at,
            bag_tokens=np.zeros(0, dtype=np.int64),
            bag_slot=np.zeros(0, dtype=np.int64),
            patches=self.patches,
            velocity=np.zeros_like(self.patches),
            grid=self.grid,
            image_time=np.minimum(1.0, self.image_time),
            image_is_scored=self.is_moving,
            text_time=min(1.0, self.text_time),
        )

    def copy(self) -> Canvas:
        """The document as it stands now, for looking at: later steps do not change it."""
        return copy.copy(self)

    def advance(self, velocity: Float32[np.ndarray, "p E"], step_size: float, step: int) -> None:
        """Move every moving image along its velocity, and the clocks of text and moving images."""
        was_moving = self.is_moving
        steps = np.where(was_moving, np.minimum(step_size, 1.0 - self.image_time), 0.0)
        patch_steps = np.repeat(steps.astype(np.float32), self.grid.prod(axis=1))
        self.patches = self.patches + patch_steps[:, None] * velocity
        self.image_time = self.image_time + steps
        self.image_end = np.where(was_moving & ~self.is_moving, step, self.image_end)
        self.text_time = min(1.0, self.text_time + step_size)

    def insert(self, slots: np.ndarray, tokens: np.ndarray, step: int, image_token: int) -> None:
        """Insert a token after each of `slots`, ascending indices before any insertion; an image token spawns noise.

        Inserting at the last slot first, or all at once as here, leaves the earlier indices as they were.
        """
        if len(slots) == 0:
            return
        is_image = np.zeros(len(self.tokens), dtype=bool)
        is_image[self.image_at] = True
        image_of = np.full(len(self.tokens), -1)
        image_of[self.image_at] = np.arange(len(self.image_at))
        spawned = tokens == image_token
        num_old, num_new = len(self.image_at), int(spawned.sum())
        new_of = np.where(spawned, num_old + np.cumsum(spawned) - 1, -1)

        places = slots + 1
        self.tokens = np.insert(self.tokens, places, tokens)
        self.born = np.insert(self.born, places, step)
        self.is_open = np.insert(self.is_open, places, True)
        order = np.insert(image_of, places, new_of)
        self.image_at = np.flatnonzero(order >= 0)
        order = order[self.image_at]
        noise = gaussian(self.rng, (num_new * self.image.num_rows, self.image.patch_elements))
        grid = np.concatenate([self.grid, np.tile(self.image.grid, (num_new, 1))])
        rank = np.repeat(np.argsort(order), grid.prod(axis=1))  # of the image that each patch belongs to
        self.patches = np.concatenate([self.patches, noise])[np.argsort(rank, kind="stable")]
        self.grid = grid[order]
        self.image_time = np.append(self.image_time, np.zeros(num_new))[order]
        self.image_is_target = np.append(self.image_is_target, np.ones(num_new, dtype=bool))[order]
        self.image_end = np.append(self.image_end, np.zeros(num_new, dtype=np.int64))[order]

    def latents(self) -> list[Float32[np.ndarray, "C _ _"]]:
        """The images as they stand now, each of its own shape."""
        ends = np.cumsum(self.grid.prod(axis=1))
        return [
            to_latent(self.patches[end - rows * columns : end], (rows, columns), self.image)
            for end, (rows, columns) in zip(ends.tolist(), self.grid.tolist(), strict=True)
        ]

    def parts(self, tokenizer: Tokenizer) -> list[str | int]:
        """The document as a reader sees it: stretches of text, and indices of images; BOS left out."""
        found: list[str | int] = []
        edges = [0, *self.image_at.tolist(), len(self.tokens)]
        for number, (before, after) in enumerate(itertools.pairwise(edges)):
            text = tokenizer.decode(self.tokens[before + 1 : after].tolist()).strip()
            found += [text] if text else []
            found += [number] if number < len(self.image_at) else []
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
    tokens, is_open, images, image_at = [tokenizer.bos], [False], [], []
    for part in prompt:
        if part is ...:
            is_open[-1] = True
            continue
        if not isinstance(part, int):
            image_at.append(len(tokens))
            images.append(part)
        tokens.append(part if isinstance(part, int) else tokenizer.image)
        is_open.append(False)
    if not any(is_open):
        is_open[-1] = len(prompt) == 0 or prompt[-1] is not None
    patches, grid = cut_images([gaussian(rng, image.shape) if part is None else part for part in images], image)
    is_target = np.array([part is None for part in images], dtype=bool)
    return Canvas(
        key=f"canvas-{index}",
        rng=rng,
        image=image,
        text_time=0.0 if any(is_open) else 1.0,
        tokens=np.array(tokens, dtype=np.int64),
        is_open=np.array(is_open),
        born=np.zeros(len(tokens), dtype=np.int64),
        image_at=np.array(image_at, dtype=np.int64),
        patches=patches,
        grid=grid,
        image_time=np.where(is_target, 0.0, 1.0),
        image_is_target=is_target,
        image_end=np.zeros(len(images), dtype=np.int64),
    )
