"""Pieces ahead of their text: where both are made, the text time is uniform and each piece's is later.

In generation a piece that is made first is complete when the text begins; here training has that order. Samples in
which text or pieces are given, or pieces are inserted like tokens, have the times that they always have.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from oneflow_dist.containers import Sample
from oneflow_dist.flow import noising
from oneflow_dist.flow.noising import WHOLE, Noising, Span, is_deletable

_draw_times = noising.draw_times


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return {
        "oneflow_dist.flow.noising:draw_times": draw_times,
        "oneflow_dist.flow.process:draw_times": draw_times,
    }


def draw_times(
    sample: Sample,
    noising: Noising,
    rng: np.random.Generator,
    text_span: Span = WHOLE,
    piece_span: Span = WHOLE,
) -> tuple[float, list[Float[np.ndarray, "_"]]]:
    """Text time and ages as always, but pieces that move beside open text are ahead of it.

        age = text time + (1 - text time) * (the age that it would have)

    Args:
        text_span: where the uniform draw of the text time falls.
        piece_span: where the draws fall of how far pieces are, between the text time and 1.
    """
    text_time, ages = _draw_times(sample, noising, rng, text_span, piece_span)
    if not sample.is_interleaved and is_deletable(sample).any():
        ages = [np.where(age < 1.0, text_time + (1.0 - text_time) * age, age) for age in ages]
    return text_time, ages
