"""Deletion by number: at each time a part of a text is missing that is fixed, not random.

Of n tokens that may be deleted round((1 - kappa(t)) n) are, chosen uniformly, where OneFlow deletes each by itself. The
number that is there then tells the length of the whole, but the sampler inserts as many as it happens to, so it meets
texts of a length that no time of training had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from oneflow_dist.containers import Sample
from oneflow_dist.flow.noising import Noising, is_deletable


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return {"oneflow_dist.flow.noising:draw_kept": draw_kept}


def draw_kept(
    sample: Sample,
    text_time: float,
    ages: Sequence[Float[np.ndarray, "_"]],
    noising: Noising,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "n"]:
    """Which tokens are there: so many of the text's as the time says; that of a piece once it has an age."""
    is_text = is_deletable(sample)
    for pieces in sample.pieces:
        is_text[pieces.token] = False
    places = np.flatnonzero(is_text)
    keep = np.ones(len(is_text), dtype=bool)
    keep[rng.permutation(places)[: num_missing(len(places), noising.schedule.keep_prob(text_time))]] = False
    for pieces, age in zip(sample.pieces, ages, strict=True):
        keep[pieces.token] = age >= 0.0
    return keep


def num_missing(length: int, keep_prob: float) -> int:
    """How many of a text's tokens are missing at a keep probability; halves are rounded up."""
    return int((1.0 - keep_prob) * length + 0.5)
