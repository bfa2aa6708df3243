"""Whether a painted figure is the one that was meant: its rank among others of the same book."""

# Shapes: k figures to choose from, E numbers of each.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from PIL import Image

from oneflow_dist.evaluation.bootstrap import Measure

SIDE = 16  # pixels of the thumbnails that are compared: layout and colours, which any project can compute alike
ROUNDING = 1e-9


def rank_of(made: Image.Image, choices: Sequence[Image.Image]) -> int:
    """The place, from 1, of the first choice when those are sorted by their distance from what was made.

    Where others are as near it comes after them, so that a blank picture, as far from all, is last; but not after
    those that look like itself: a book may show a figure twice.
    """
    made_small, (own, *others) = thumbnail(made), [thumbnail(picture) for picture in choices]
    limit = np.square(made_small - own).sum() + ROUNDING
    unlike = [one for one in others if np.square(one - own).sum() > ROUNDING]
    return 1 + sum(bool(np.square(made_small - one).sum() <= limit) for one in unlike)


def thumbnail(picture: Image.Image) -> Float64[np.ndarray, "E"]:
    """Small, without its mean and of length one: whether a figure is bright says little of what it shows."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = np.asarray(small, dtype=np.float64).ravel()
    values = values - values.mean()
    return values / max(1e-9, float(np.linalg.norm(values)))


def measure_ranks(ranks: Sequence[int], number: int) -> dict[str, Measure]:
    """How often the own figure is first of `number`, and the mean of 1/rank.

    Raises:
        ValueError: there is nothing to choose from.
    """
    if number < 2:
        raise ValueError(f"{number} figures to choose from; an item needs at least one distractor")
    firsts, reciprocals = [rank == 1 for rank in ranks], [1.0 / rank for rank in ranks]
    return {"recall_1": Measure.mean_of(firsts), "reciprocal_rank": Measure.mean_of(reciprocals)}


def chance(number: int) -> dict[str, float]:
    """The same of a blind choice."""
    return {"recall_1": 1.0 / number, "reciprocal_rank": float(np.mean(1.0 / np.arange(1, number + 1)))}
