"""Many events decided by one draw, as many of them as are expected."""

# Shapes: n events.

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def draw_systematically(prob: Float[np.ndarray, "n"], rng: np.random.Generator) -> Bool[np.ndarray, "n"]:
    """Events with these chances, of which neighbours exclude each other as far as their chances allow.

    The chances are laid end to end, and events are where a comb of teeth one apart hits. So in any stretch as many
    happen as are expected, rounded up or down, and where chances are small, no two side by side.
    """
    teeth = np.floor(np.cumsum(np.append(rng.random(), prob)))
    return np.diff(teeth) > 0.0
