"""Which rows see which, against the rules written out as boolean masks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from oneflow_kernels.key_intervals import (
    KeyIntervals,
    block_intervals,
    cached_intervals,
    causal_intervals,
    document_intervals,
    key_intervals,
    transfusion_intervals,
)

layouts = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)  # rows of each sequence


def cumulate(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def check(intervals: KeyIntervals, is_seen: Tensor) -> None:
    """The intervals say the same as the mask of rows by keys, and keep what they promise."""
    row, key = (torch.arange(count) for count in is_seen.shape)
    assert torch.equal((intervals.start[:, None] <= key) & (key < intervals.end[:, None]), is_seen)
    assert torch.equal((intervals.query_start[:, None] <= row) & (row < intervals.query_end[:, None]), is_seen.T)
    assert all((ends.diff() >= 0).all() for ends in intervals)
    assert (intervals.start <= intervals.end).all()
    assert all(ends.dtype == torch.int32 for ends in intervals)


def same_sequence(lengths: list[int]) -> Tensor:
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return sequence[:, None] == sequence


@settings(max_examples=30)
@given(layouts)
def test_rows_of_a_document_see_all_of_it(lengths: list[int]) -> None:
    check(document_intervals(cumulate(lengths), sum(lengths)), same_sequence(lengths))


@settings(max_examples=30)
@given(layouts)
def test_causal_rows_see_themselves_and_what_stands_before(lengths: list[int]) -> None:
    check(causal_intervals(cumulate(lengths), sum(lengths)), same_sequence(lengths).tril())


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5).filter(any))
def test_rows_of_a_block_see_it_and_the_blocks_before(sequences: list[list[int]]) -> None:
    lengths = [sum(blocks) for blocks in sequences]
    blocks = torch.tensor([rows for blocks in sequences for rows in blocks])
    block = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
    row_end = blocks.cumsum(0).int()[block]
    check(block_intervals(cumulate(lengths), row_end), same_sequence(lengths) & (block[:, None] >= block))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6))
def test_rows_see_all_kept_keys_of_their_sequence(sizes: list[tuple[int, int]]) -> None:
    """Also where a sequence has no row, or no key."""
    rows, keys = ([size[i] for size in sizes] for i in (0, 1))
    of_row, of_key = (
        torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(lengths)) for lengths in (rows, keys)
    )
    intervals = cached_intervals(cumulate(rows), cumulate(keys), sum(rows), sum(keys))
    check(intervals, of_row[:, None] == of_key)


@settings(max_examples=30)
@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=5), min_size=1, max_size=4).filter(any))
def test_rows_of_an_image_see_all_of_it_and_what_stands_before(documents: list[list[tuple[bool, int]]]) -> None:
    """Documents are stretches of text and images in any order, also images at both ends and side by side."""
    stretches = [stretch for document in documents for stretch in document]
    num_images = sum(is_image for is_image, _ in stretches)
    numbers = iter(range(num_images))
    row_image = torch.tensor([n for is_image, rows in stretches for n in [next(numbers) if is_image else -1] * rows])
    lengths = [sum(rows for _, rows in document) for document in documents]
    is_own_image = (row_image[:, None] == row_image) & (row_image >= 0)
    expected = same_sequence(lengths) & (is_own_image | torch.ones_like(is_own_image).tril())
    row_image = row_image.where(row_image >= 0, num_images)
    check(transfusion_intervals(cumulate(lengths), row_image, num_images), expected)


def test_an_image_of_one_row_is_as_text() -> None:
    cu_seqlens, row_image = cumulate([5]), torch.tensor([2, 0, 2, 1, 2])
    found = transfusion_intervals(cu_seqlens, row_image, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, causal_intervals(cu_seqlens, 5), strict=True))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9), st.integers(0, 12))
def test_any_ends_that_never_move_left_have_an_inverse(ends: list[tuple[int, int]], num_keys: int) -> None:
    """Also where rows see nothing, where keys are seen by nobody, and where rows do not see themselves."""
    pairs = torch.tensor(ends, dtype=torch.int32).clamp(max=num_keys).sort(dim=1).values.cummax(0).values
    start, end = pairs.unbind(1)
    key = torch.arange(num_keys)
    intervals = key_intervals(start.contiguous(), end.contiguous(), num_keys)
    check(intervals, (start[:, None] <= key) & (key < end[:, None]))


def test_intervals_are_made_without_looking_at_values() -> None:
    """So nothing waits for the device, and a compiled graph is the same for any number of documents."""
    with FakeTensorMode():
        cu_seqlens, row_image = torch.zeros(4, dtype=torch.int32), torch.zeros(7, dtype=torch.int64)
        for found in (
            document_intervals(cu_seqlens, 7),
            causal_intervals(cu_seqlens, 7),
            transfusion_intervals(cu_seqlens, row_image, 2),
            block_intervals(cu_seqlens, torch.zeros(7, dtype=torch.int32)),
        ):
            assert [tuple(ends.shape) for ends in found] == [(7,)] * 4
        found = cached_intervals(cu_seqlens, cu_seqlens, 7, 9)
        assert [tuple(ends.shape) for ends in found] == [(7,), (7,), (9,), (9,)]
