"""Which digit is said, and which is moving: what a reader finds in the latents of sounds and of videos."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from oneflow_dist.data.sound import encode_sound, encode_wave
from oneflow_dist.extras import require
from tools.digits.grammar import read_images
from tools.sounds.variations import BANDS, DIRECTIONS, FRAMES, RATE, scroll, speak

EXAMPLES = 50  # of each digit, to learn from
POOL = 4  # bands and frames that become one value, so that small differences in pitch and speed do not count


def read_sounds(latents: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The digit that a classifier, trained on variations of the recordings, hears in each latent [64, 44]."""
    if len(latents) == 0:
        return np.zeros(0, dtype=np.int64)
    return _listener().predict(_features(latents))


def read_videos(latents: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The digit that moves in each latent [1, 4, 8, 8], read from the mean of its frames, each moved back."""
    return read_images([find_picture(latent)[0] for latent in latents])


def find_picture(latent: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture [1, 8, 8] that moves in a video [1, 4, 8, 8], and how far frames are from it (root mean square).

    Of the four directions it is the one in which frames, moved back, differ least.
    """
    still = [scroll(latent, (-rows, -columns)) for rows, columns in DIRECTIONS]
    error, best = min((float(np.sqrt(frames.var(axis=1).mean())), number) for number, frames in enumerate(still))
    return still[best].mean(axis=1), error


def say(digit: int, rng: np.random.Generator) -> np.ndarray:
    """A variation of a digit's sound as a latent [64, 44]."""
    return encode_sound(encode_wave(speak(digit, rng), RATE), RATE, BANDS, f"digit {digit}")


@functools.cache
def _listener() -> Any:
    require("the listener of sounds", "experiments", "sklearn")
    from sklearn.svm import SVC

    digits = [digit for digit in range(10) for _ in range(EXAMPLES)]
    latents = [say(digit, np.random.default_rng(number)) for number, digit in enumerate(digits)]
    return SVC(C=10.0).fit(_features(latents), digits)


def _features(latents: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean loudness of tiles of a latent, less the mean of all and over their spread: the same however loud it is."""
    tiles = np.reshape(latents, (len(latents), BANDS // POOL, POOL, FRAMES // POOL, POOL)).mean(axis=(2, 4))
    features = tiles.reshape(len(latents), -1)
    features = features - features.mean(axis=1, keepdims=True)
    return features / (features.std(axis=1, keepdims=True) + 1e-6)
