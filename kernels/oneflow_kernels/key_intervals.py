"""Which rows each row of a packed batch attends to: one interval of keys, whose ends never move left."""

# Shapes: T rows, S sequences, S1 = S + 1.

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int32, Int64
from torch import Tensor


class KeyIntervals(NamedTuple):
    """Row t attends to keys [start[t], end[t]), so key u is read by rows [query_start[u], query_end[u]).

    start and end never decrease from row to row, and start <= end <= T; where they are equal a row attends to nothing.
    Made once for a batch, on its device, from sizes that do not depend on how many sequences there are.
    """

    start: Int32[Tensor, "T"]
    end: Int32[Tensor, "T"]
    query_start: Int32[Tensor, "T"]
    query_end: Int32[Tensor, "T"]


def key_intervals(start: Int32[Tensor, "T"], end: Int32[Tensor, "T"]) -> KeyIntervals:
    """The intervals with their inverse: row t reads key u if and only if start[t] <= u < end[t]."""
    row = _rows(start, len(start))
    query_start = torch.searchsorted(end, row, right=True, out_int32=True)
    return KeyIntervals(start, end, query_start, torch.searchsorted(start, row, right=True, out_int32=True))


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
    return key_intervals(start, end)


def prefix_intervals(
    cu_seqlens: Int32[Tensor, "S1"], prefix_lengths: Int32[Tensor, "S"], num_rows: int
) -> KeyIntervals:
    """Every row attends to the first `prefix_lengths` rows of its sequence, to those before it, and to itself."""
    row = _rows(cu_seqlens, num_rows)
    sequence = torch.searchsorted(cu_seqlens, row, right=True) - 1
    prefix_end = torch.minimum(cu_seqlens[:-1] + prefix_lengths, cu_seqlens[1:])
    return key_intervals(cu_seqlens[sequence], torch.maximum(row + 1, prefix_end[sequence]))


def _rows(like: Tensor, num_rows: int) -> Int32[Tensor, "T"]:
    return torch.arange(num_rows, dtype=torch.int32, device=like.device)


def _sequence_of_row(cu_seqlens: Int32[Tensor, "S1"], num_rows: int) -> tuple[Int32[Tensor, "T"], Int32[Tensor, "T"]]:
    """Where the sequence of each row starts and ends."""
    after = torch.searchsorted(cu_seqlens, _rows(cu_seqlens, num_rows), right=True)
    return cu_seqlens[after - 1], cu_seqlens[after]
