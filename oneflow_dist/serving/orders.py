"""What a user wants to have written, once it is known to be well formed, and how much anyone may want."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows; everything that a stranger could make large has an end here.

    Seconds are of one wait, not of a whole request.
    """

    body_bytes: int = 16 * 2**20
    parts: int = 256  # of one prompt, or one conversation
    pictures: int = 16  # given in one request
    pixels: int = 16 * 2**20  # of all pictures given in one request
    characters: int = 100_000  # of all text in one request
    documents: int = 8  # that one request may ask for
    waiting: int = 256  # requests that may wait
    writing: int = 32  # documents that one process writes together
    connections: int = 1024
    requests_per_minute: int = 600  # of one address; 0: any number
    body_seconds: float = 30.0  # in which a request has to arrive
    head_seconds: float = 10.0  # in which its head has to
    read_seconds: float = 60.0  # a client that takes no byte for so long is cut off
    backlog: int = 64  # events that wait for a client, from which on it gets no pictures in the making
    steps: int = 1000
    corrections: int = 16
    blocks: int = 64
    canvas_tokens: int = 4096
    guidance: float = 100.0  # a weight, in size
    weak_temperature: float = 0.01  # at least
    latent: float = 1e6  # a number in a given latent, in size
    max_rows: int = 0  # of one document; 0: as many as the model's config says
