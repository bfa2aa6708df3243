"""Which of a lane's waiting samples make its next pack: the oldest, or packs of equal attention work."""

# Shapes: w waiting samples, c limits of a pack (rows first, as in `Capacity.to_list`), f those that still fit.

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from oneflow_dist.containers import Capacity

# Of packs of equal work: the oldest sample that fits is taken while the rows that it leaves can be filled with between
# LEAST and MOST times the usual work of a row. The last GAP usual documents are those that bring it out.
LEAST, MOST, GAP = 0.5, 2.0, 3.0


def choose_samples(sizes: list[Capacity], capacity: Capacity, row_pairs: float | None = None) -> list[int]:
    """Which of the waiting samples make the next pack. One sequence is kept free for the padding.

    Args:
        sizes: oldest first; the oldest is always chosen, so that each is, in at most as many packs as wait before it.
        row_pairs: attention pairs of a row that every pack should have, as `Lane` counts them; None: as they fall.

    Returns:
        Indices into `sizes`, never empty.
    """
    need = np.array([size.to_list() for size in sizes])
    room = np.array(replace(capacity, sequences=capacity.sequences - 1).to_list(), dtype=np.int64)
    assert (need[0] <= room).all(), "a sample larger than a pack must be refused when it is decoded"
    return _choose_oldest(need, room) if row_pairs is None else _choose_equal(need, room, row_pairs)


def _choose_oldest(need: Int64[np.ndarray, "w c"], room: Int64[np.ndarray, "c"]) -> list[int]:
    """The oldest, while they fit; what gap they leave is filled best-fit, the largest that still fits each time."""
    fits_with_all_before = (np.cumsum(need, axis=0) <= room).all(axis=1)
    num_oldest = len(need) if fits_with_all_before.all() else int(np.argmin(fits_with_all_before))
    chosen = list(range(num_oldest))
    room = room - need[:num_oldest].sum(axis=0)
    is_free = np.arange(len(need)) >= num_oldest
    while True:
        fits = np.flatnonzero(is_free & (need <= room).all(axis=1))
        if fits.size == 0:
            return chosen
        best = int(fits[np.argmax(need[fits, 0])])
        chosen.append(best)
        is_free[best] = False
        room -= need[best]


def _choose_equal(need: Int64[np.ndarray, "w c"], room: Int64[np.ndarray, "c"], row_pairs: float) -> list[int]:
    """Samples whose squared rows, pairs of a row and a key, are `row_pairs` for each row of the pack."""
    pairs = row_pairs * int(room[0])
    left, most = np.arange(len(need)), need.max(axis=0)  # those that fit, and what one needs at most
    chosen, place = list[int](), 0
    while left.size:
        best = int(left[place])
        chosen.append(best)
        room = room - need[best]
        pairs -= int(need[best, 0]) ** 2
        left = np.delete(left, place)
        if (most > room).any():
            left = left[(need[left] <= room).all(axis=1)]
        if left.size:
            place = _next_of(need[left, 0], int(room[0]), pairs, row_pairs)
    return chosen


def _next_of(rows: Int64[np.ndarray, "f"], num_rows: int, pairs: float, row_pairs: float) -> int:
    """Which of those that fit is the next, where `num_rows` and `pairs` are still to be filled.

    The oldest, or near the end, and where none leaves what others can make up for, the one of the wanted length.
    """
    if num_rows > GAP * row_pairs:
        usual = (num_rows - rows) * row_pairs
        left = pairs - np.square(rows)
        is_good = (LEAST * usual <= left) & (left <= MOST * usual)
        if is_good.any():
            return int(np.argmax(is_good))
    return int(np.argmin(np.abs(rows - _wanted_rows(num_rows, pairs))))


def _wanted_rows(num_rows: int, pairs: float) -> float:
    """The length that fills rows and pairs together.

    If all the rest had pairs / num_rows rows, both would come out. Where that is no two documents, it is two of
    different lengths, a + b = num_rows and a^2 + b^2 = pairs, of which this is the longer one; and if it is not even
    one, it is more than there is room for, so that the longest that fits comes nearest.
    """
    each = pairs / num_rows
    if num_rows >= 2.0 * each:
        return each
    return (num_rows + math.sqrt(2.0 * pairs - num_rows**2)) / 2.0
