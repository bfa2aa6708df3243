"""The quickstart's world: handwritten digits, the sentences about them, and how a reader judges them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from oneflow_dist.evaluation.interleaved.scenes import DIGITS, counts_up
from oneflow_dist.extras import require

WORDS = DIGITS
CAPTIONS = ("a handwritten {}", "the digit {}", "a picture of a {}", "someone wrote a {}", "this is a {}")
COUNT_PROMPT = "count up:"
MAX_COUNT = 5  # images in a counting document
_CAPTION = re.compile("|".join(caption.format(f"({'|'.join(WORDS)})") for caption in CAPTIONS))


def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digit images [n, 8, 8] uint8 and labels [n]; every fifth image is held out from training."""
    require("the digits", "experiments", "sklearn")
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.minimum(data.images * 16, 255).astype(np.uint8)
    is_heldout = np.arange(len(images)) % 5 == 4
    chosen = is_heldout if split == "heldout" else ~is_heldout
    return images[chosen], data.target[chosen]


def count_up(rng: np.random.Generator, longest: int = MAX_COUNT) -> list[int]:
    """One to `longest` consecutive digits; where these are more than ten, zero follows nine."""
    length = int(rng.integers(1, longest + 1))
    start = int(rng.integers(0, 10 if longest > 10 else 10 - length + 1))
    return [(start + number) % 10 for number in range(length)]


def read_caption(text: str) -> int | None:
    """The digit that a caption names; None if it is none of the grammar's sentences."""
    if not _CAPTION.fullmatch(text):
        return None
    return WORDS.index(text.rpartition(" ")[2])


def read_count(words: list[str], longest: int = MAX_COUNT) -> list[int] | None:
    """The digits that the words of a counting document name; None unless one to `longest` words count up."""
    if any(word not in WORDS for word in words) or not counts_up(words, {"longest": longest}):
        return None
    return [WORDS.index(word) for word in words]


@functools.cache
def _reader() -> Any:
    images, labels = load_split("train")
    from sklearn.svm import SVC

    return SVC(gamma=0.001, C=10.0).fit(images.reshape(len(images), -1) / 16.0, labels)


def read_images(latents: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The digit that a classifier, trained on the training images, sees in each latent [1, 8, 8]."""
    if len(latents) == 0:
        return np.zeros(0, dtype=np.int64)
    pixels = np.clip((np.reshape(latents, (len(latents), -1)) + 1.0) * 127.5, 0, 255)
    return _reader().predict(pixels / 16.0)
