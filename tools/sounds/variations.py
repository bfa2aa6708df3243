"""A digit said and moved in many ways."""

from __future__ import annotations

import functools
import io
import wave
from importlib import resources

import numpy as np

from oneflow_dist.extras import require

RATE, BANDS, FRAMES = 8000, 64, 44  # of a sound: samples a second, bands and frames of its latent
DIRECTIONS = ((0, 2), (0, -2), (2, 0), (-2, 0))  # rows and columns of a step of a moving digit
STEPS = 4  # frames of a moving digit: as many as bring it back
SPEEDS, GAINS, NOISE = (0.92, 1.08), (0.5, 1.5), 0.002


def speak(digit: int, rng: np.random.Generator) -> np.ndarray:
    """A digit as a sound of 0.352 s, [2816] in [-1, 1]: slower or faster, softer or louder, with a faint noise."""
    recording, length = load_recording(digit), FRAMES * BANDS
    time = np.arange(length) * rng.uniform(*SPEEDS)
    sound = np.interp(time, np.arange(len(recording)), recording, right=0.0)
    gain = np.exp(rng.uniform(*np.log(GAINS)))
    return gain * sound + NOISE * rng.standard_normal(length)


def scroll(frames: np.ndarray, direction: tuple[int, int]) -> np.ndarray:
    """Frames [..., T, H, W], each moved on by one more step; what leaves a picture comes in on its other side."""
    rows, columns = direction
    moved = [np.roll(frames[..., t, :, :], (t * rows, t * columns), axis=(-2, -1)) for t in range(frames.shape[-3])]
    return np.stack(moved, axis=-3)


@functools.cache
def load_recording(digit: int) -> np.ndarray:
    """The one recording of a digit, [n] in [-1, 1], that the package `captcha` brings along."""
    require("the recorded digits", "sounds", "captcha")
    data = (resources.files("captcha") / "data" / str(digit) / "default.wav").read_bytes()
    with wave.open(io.BytesIO(data)) as reader:
        levels = np.frombuffer(reader.readframes(reader.getnframes()), dtype=np.uint8)
    return (levels.astype(np.float64) - 128) / 128
