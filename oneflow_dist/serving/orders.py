"""What a user wants to have written, once it is known to be well formed."""

# Shapes: C channels of a latent.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from oneflow_dist.sampling import SamplingConfig


@dataclass(frozen=True, slots=True)
class Text:
    """Given text; the tokens of modalities and of a hole that it spells are read."""

    text: str


@dataclass(frozen=True, slots=True)
class Hole:
    """A place to write text in."""


@dataclass(frozen=True, slots=True)
class Make:
    """A piece to make from noise."""

    modality: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A given picture, or one to make from how it looks at a time."""

    data: bytes  # of a PNG, JPEG or WebP
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Given tokens, as an earlier document said them."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latent:
    """A given piece, as an earlier document said it."""

    modality: str
    latent: Float32[np.ndarray, "C *_"]


Part = Text | Hole | Make | Picture | Tokens | Latent
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation said."""

    role: Role
    parts: tuple[Text | Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One document."""

    parts: tuple[Part, ...] = ()  # of the prompt, in reading order
    turns: tuple[Turn, ...] = ()  # instead: a conversation whose answer is wanted
    sampling: SamplingConfig
    seed: int  # of everything random
    follows: Literal["steps", "text", "end"] = (
        "end"  # what is told before the end: every step, text that is final, nothing
    )
    preview_steps: int = 0  # every so many steps pieces are shown in the making; 0: never
    max_new_rows: int = 0  # beyond those of the prompt; 0: no limit but that of the settings
