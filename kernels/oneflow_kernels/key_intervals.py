"""Which rows each row of a packed batch attends to: one interval of keys, whose ends never move left."""

# Shapes: T rows, U keys, S1 sequences + 1.

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int32, Int64
from torch import Tensor


class KeyIntervals(NamedTuple):
    """Row t attends to keys [start[t], end[t]), so key u is read by rows [query_start[u], query_end[u]).

    start and end never decrease from row to row, and start <= end <= U; where they are equal a row attends to nothing.
    Keys are of the same rows (U = T), or of others, as where they are kept from step to step of a generation.
    Made once for a batch, on its device, from sizes that do not depend on how many sequences there are.
    """

    start: Int32[Tensor, "T"]
    end: Int32[Tensor, "T"]
    query_start: Int32[Tensor, "U"]
    query_end: Int32[Tensor, "U"]


def key_intervals(start: Int32[Tensor, "T"], end: Int32[Tensor, "T"], num_keys: int) -> KeyIntervals:
    """The intervals with their inverse: row t reads key u if and only if start[t] <= u < end[t]."""
    key = _rows(start, num_keys)
    query_start = torch.searchsorted(end, key, right=True, out_int32=True)
    return KeyIntervals(start, end, query_start, torch.searchsorted(start, key, right=True, out_int32=True))


def document_intervals(cu_seqlens: Int32[Tensor, "S1"], num_rows: int) -> KeyIntervals:
    """Every row attends to all of its sequence.

    Args:
        cu_seqlens: first row of each sequence, then `num_rows`; ascending, sequences may be empty.
    """
    start, end = _sequence_of_row(cu_seqlens, num_rows)
    return KeyIntervals(start, end, start, end)


def causal_intervals(cu_seqlens: Int32[Tensor, "S1"], num_rows: int) -> KeyIntervals:
    """Every row attends to itself and to the rows of its sequence before it."""
    start, end = _sequence_of_row(cu_seqlens, num_rows)
    row = _rows(cu_seqlens, num_rows)
    return KeyIntervals(start, row + 1, row, end)


def transfusion_intervals(
    cu_seqlens: Int32[Tensor, "S1"], row_image: Int64[Tensor, "T"], num_images: int
) -> KeyIntervals:
    """Every row attends to what stands before it in its sequence, and to itself; rows of an image to all of the image.

    Args:
        row_image: the image a row is a patch of, `num_images` on every other row; rows of one image are neighbours.

    Source: arXiv:2408.11039, section 3.2.
    """
    start, _ = _sequence_of_row(cu_seqlens, len(row_image))
    row = _rows(cu_seqlens, len(row_image))
    is_last = torch.ones_like(row_image, dtype=torch.bool)  # of its image, or a row of text
    is_last[:-1] = (row_image[1:] != row_image[:-1]) | (row_image[:-1] == num_images)
    end = torch.where(is_last, row + 1, len(row_image)).flip(0).cummin(0).values.flip(0)
    return key_intervals(start, end, len(row_image))


def block_intervals(cu_seqlens: Int32[Tensor, "S1"], row_end: Int32[Tensor, "T"]) -> KeyIntervals:
    """Row t attends to those rows of its sequence that come before row `row_end[t]`.

    Args:
        row_end: never decreases, and is at most the end of the sequence.
    """
    start, _ = _sequence_of_row(cu_seqlens, len(row_end))
    return key_intervals(start, row_end, len(row_end))


def cached_intervals(
    cu_seqlens: Int32[Tensor, "S1"], key_seqlens: Int32[Tensor, "S1"], num_rows: int, num_keys: int
) -> KeyIntervals:
    """Every row attends to all keys of its sequence, of which there may be more than rows.

    Args:
        key_seqlens: first key of each sequence, then `num_keys`; ascending, sequences may be empty.
    """
    sequence = _sequence(cu_seqlens, num_rows)
    of_key = _sequence(key_seqlens, num_keys)
    return KeyIntervals(key_seqlens[sequence], key_seqlens[sequence + 1], cu_seqlens[of_key], cu_seqlens[of_key + 1])


def _rows(like: Tensor, num_rows: int) -> Int32[Tensor, "T"]:
    return torch.arange(num_rows, dtype=torch.int32, device=like.device)


def _sequence(cu_seqlens: Int32[Tensor, "S1"], num_rows: int) -> Int64[Tensor, "T"]:
    """The sequence of each row."""
    return torch.searchsorted(cu_seqlens, _rows(cu_seqlens, num_rows), right=True) - 1


def _sequence_of_row(cu_seqlens: Int32[Tensor, "S1"], num_rows: int) -> tuple[Int32[Tensor, "T"], Int32[Tensor, "T"]]:
    """Where the sequence of each row starts and ends."""
    sequence = _sequence(cu_seqlens, num_rows)
    return cu_seqlens[sequence], cu_seqlens[sequence + 1]
