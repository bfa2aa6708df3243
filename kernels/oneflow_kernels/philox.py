"""Random words by their place: the same on any device, in any order."""

from __future__ import annotations

from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]  # int64 in [0, 2**32)
Key = tuple[int, int] | tuple[Tensor, Tensor]  # likewise

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF  # a 32-bit word; words are held in int64, whose products wrap with the right bits


def philox(counter: Words, key: Key) -> Words:
    """Philox4x32-10: four random 32-bit words for each counter under a key.

    Args:
        counter: of shapes that broadcast, with those of the key.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (q >> 32 & MASK) ^ b ^ first, q & MASK, (p >> 32 & MASK) ^ d ^ second, p & MASK
        first, second = (first + KEY_STEPS[0]) & MASK, (second + KEY_STEPS[1]) & MASK
    return a, b, c, d
