"""The world of boards: what a sentence tells, what a picture shows, and how far it is from all there can be."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from oneflow_dist.evaluation.interleaved.scenes import COLOURS, COUNTS, NOUNS, read_scene, say_scene
from oneflow_dist.evaluation.metrics.diversity import nearest_pictures
from tools.interleaved.icons import CELL, all_boards

ICONS = Path(__file__).with_name("icons.png")
DIMMEST, BRIGHTEST = 0.9, 1.1  # brightness that a picture may have
NOISE = 4.0  # standard deviation, in grey levels of 255
LEAD = "first"  # with which a caption is a scene of a story
ATTRIBUTES = ("count", "colour", "noun")  # of a label
LEVELS = 9  # of brightness, that a reader knows
Label = tuple[str, str, str]  # what a picture shows or a caption tells, as ("two", "red", "fish"): a noun's singular
# Distance of a picture that is one: half way to the nearest board of another label; those that are made are nearer.
FARTHEST = 0.003


class Sight(NamedTuple):
    """What a reader sees in a picture."""

    label: Label
    distance: float  # mean squared, of latents, to the nearest picture without noise


LABELS = tuple(itertools.product(COUNTS, COLOURS, NOUNS))


@functools.cache
def load_icons() -> dict[str, Float32[np.ndarray, "8 8"]]:
    """How dark each noun's icon is, from 0 to 1."""
    with Image.open(ICONS) as strip:
        dark = np.asarray(strip, dtype=np.float32) / np.float32(255.0)
    return {noun: dark[:, CELL * place : CELL * (place + 1)] for place, noun in enumerate(NOUNS)}


def write_caption(label: Label) -> str:
    """The sentence of a label, as "two red mice"."""
    return say_scene(LEAD, " ".join(label)).removeprefix(f"{LEAD} ")


def read_caption(text: str) -> Label | None:
    """The label of a sentence; None if it is none of the grammar's."""
    scene = read_scene(f"{LEAD} {text}")
    if scene is None or text != text.strip():
        return None
    count, colour, noun = scene.split()
    return count, colour, noun


def draw_board(label: Label, rng: np.random.Generator) -> UInt8[np.ndarray, "16 16 3"]:
    """A picture of a label: in some cells, in some light, with noise on every pixel."""
    boards = all_boards(load_icons(), " ".join(label))
    light = rng.uniform(DIMMEST, BRIGHTEST) * boards[rng.integers(len(boards))]
    return np.clip(light + rng.normal(0.0, NOISE, light.shape), 0.0, 255.0).round().astype(np.uint8)


def read_pictures(latents: Sequence[np.ndarray] | np.ndarray) -> list[Sight]:
    """What each latent [3, 16, 16] from -1 to 1 shows: the label of the nearest of all boards in all lights."""
    if len(latents) == 0:
        return []
    labels, boards = _known_boards()
    flat = np.clip(np.asarray(latents, dtype=np.float32).reshape(len(latents), -1), -1.0, 1.0)
    nearest = nearest_pictures(flat, boards)
    squared = nearest.distance**2 / flat.shape[1]
    return [Sight(labels[at], float(far)) for at, far in zip(nearest.index, squared, strict=True)]


@functools.cache
def _known_boards() -> tuple[list[Label], Float32[np.ndarray, "m 768"]]:
    icons = load_icons()
    known = [(label, board) for label in LABELS for board in all_boards(icons, " ".join(label))]
    boards = np.stack([board for _, board in known]).transpose(0, 3, 1, 2).reshape(len(known), -1)
    lights = np.linspace(DIMMEST, BRIGHTEST, LEVELS, dtype=np.float32)
    lit = np.minimum(lights[:, None, None] * boards, np.float32(255.0)) / np.float32(127.5) - np.float32(1.0)
    return [label for label, _ in known] * LEVELS, lit.reshape(-1, boards.shape[1])
