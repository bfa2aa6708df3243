"""Samples of many lengths become one sequence of fixed size, with hardly any padding."""

# Shapes: N slots, B bag tokens, I images, T trunk rows, S1 sequences + 1.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, Int64

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Capacity, Counts, NoisySample, PackedBatch


def size_of(samples: list[NoisySample], image: ImageConfig) -> Capacity:
    """The room that the samples need together, without padding."""
    num_tokens = sum(len(s.tokens) for s in samples)
    num_images = sum(len(s.image_at) for s in samples)
    return Capacity(
        rows=num_tokens + num_images * image.num_rows,
        tokens=num_tokens,
        bag_tokens=sum(len(s.bag_tokens) for s in samples),
        images=num_images,
        sequences=len(samples),
    )


def choose_samples(sizes: list[Capacity], capacity: Capacity) -> list[int]:
    """Which of the waiting samples make the next pack.

    The oldest go first, so that no sample waits for long and a pack is a fair draw; the gap that they leave is filled
    best-fit, the largest that still fits each time. One sequence is kept free for the padding.

    Returns:
        Indices into `sizes`, never empty.
    """
    need = np.array([(s.rows, s.tokens, s.bag_tokens, s.images, s.sequences) for s in sizes])
    room = np.array(
        (capacity.rows, capacity.tokens, capacity.bag_tokens, capacity.images, capacity.sequences - 1), dtype=np.int64
    )
    fits_with_all_before = (np.cumsum(need, axis=0) <= room).all(axis=1)
    num_oldest = len(need) if fits_with_all_before.all() else int(np.argmin(fits_with_all_before))
    chosen = list(range(num_oldest))
    room = room - need[:num_oldest].sum(axis=0)
    is_free = np.arange(len(need)) >= num_oldest
    while True:
        fits = np.flatnonzero(is_free & (need <= room).all(axis=1))
        if fits.size == 0:
            break
        best = int(fits[np.argmax(need[fits, 0])])
        chosen.append(best)
        is_free[best] = False
        room -= need[best]
    assert chosen, "a sample larger than a pack must be refused when it is decoded"
    return chosen


def pack(samples: list[NoisySample], capacity: Capacity | None, image: ImageConfig) -> PackedBatch:
    """Lay samples end to end. Training and generation both come through here.

    Args:
        samples: at least one; together they fit in `capacity`.
        capacity: what to pad to, at least one sequence more than samples; None pads nothing.
        image: the latent's shape and patch size.
    """
    size = size_of(samples, image)
    if capacity is None:
        capacity = size
    lengths = np.array([len(s.tokens) for s in samples])
    first_slot = np.cumsum(lengths) - lengths  # of each sample
    image_sequence = np.repeat(np.arange(len(samples)), [len(s.image_at) for s in samples])
    bag_sequence = np.repeat(np.arange(len(samples)), [len(s.bag_tokens) for s in samples])
    image_slot = np.concatenate([s.image_at for s in samples]).astype(np.int64) + first_slot[image_sequence]
    bag_slot = np.concatenate([s.bag_slot for s in samples]).astype(np.int64) + first_slot[bag_sequence]

    is_open = np.concatenate([s.is_open for s in samples])
    num_open = np.add.reduceat(is_open.astype(np.int64), first_slot)
    slot_weight = is_open / np.repeat(np.maximum(num_open, 1), lengths)

    layout = _lay_rows(lengths, first_slot, image_slot, image, size, capacity)
    is_scored = np.concatenate([s.image_is_scored for s in samples])
    sequence_rows = np.diff(layout.cu_seqlens[: len(samples) + 1])
    return PackedBatch(
        tokens=_pad(np.concatenate([s.tokens for s in samples]), capacity.tokens),
        token_row=_pad(layout.token_row, capacity.tokens),
        token_sequence=_pad(np.repeat(np.arange(len(samples)), lengths), capacity.tokens),
        slot_weight=_pad(slot_weight.astype(np.float32), capacity.tokens),
        missing_count=_pad(np.bincount(bag_slot, minlength=size.tokens).astype(np.float32), capacity.tokens),
        bag_tokens=_pad(np.concatenate([s.bag_tokens for s in samples]), capacity.bag_tokens),
        bag_slot=_pad(bag_slot, capacity.bag_tokens, fill=capacity.tokens - 1),
        bag_weight=_pad(slot_weight[bag_slot].astype(np.float32), capacity.bag_tokens),
        latents=_pad(np.concatenate([s.latents for s in samples]), capacity.images),
        velocity=_pad(np.concatenate([s.velocity for s in samples]), capacity.images),
        image_time=_pad(np.concatenate([s.image_time for s in samples]).astype(np.float32), capacity.images),
        image_weight=_pad(is_scored.astype(np.float32), capacity.images),
        image_row=_pad(layout.image_row, capacity.images),
        row_source=torch.from_numpy(layout.row_source),
        row_image=torch.from_numpy(layout.row_image),
        position=torch.from_numpy(layout.position),
        cu_seqlens=torch.from_numpy(layout.cu_seqlens),
        text_time=_pad(np.array([s.text_time for s in samples], dtype=np.float32), capacity.sequences),
        max_seqlen=1 << (int(np.diff(layout.cu_seqlens).max()) - 1).bit_length(),
        counts=Counts(
            open_slots=int(is_open.sum()),
            text_sequences=int((num_open > 0).sum()),
            image_elements=int(is_scored.sum()) * image.num_elements,
            rows=size.rows,
            padded_rows=capacity.rows,
            text_tokens=size.tokens,
            bag_tokens=size.bag_tokens,
            filled_slots=len(np.unique(bag_slot)),
            sequences=len(samples),
            attention_pairs=int(np.square(sequence_rows.astype(np.int64)).sum()),
        ),
        keys=tuple(s.key for s in samples),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where everything lies in the trunk's rows; fields as in `PackedBatch`."""

    token_row: Int64[np.ndarray, "n"]
    image_row: Int64[np.ndarray, "i"]
    row_source: Int64[np.ndarray, "T"]
    row_image: Int64[np.ndarray, "T"]
    position: Int32[np.ndarray, "T 3"]
    cu_seqlens: Int32[np.ndarray, "S1"]


def _lay_rows(
    lengths: Int64[np.ndarray, "s"],
    first_slot: Int64[np.ndarray, "s"],
    image_slot: Int64[np.ndarray, "i"],
    image: ImageConfig,
    size: Capacity,
    capacity: Capacity,
) -> _Layout:
    """Rows, their inputs and their positions.

    A text row stands at (p, p, p). Patch (r, c) of an image token at p stands at (p+1, p+1+r, p+1+c), and the text
    after it goes on at p + 1 + the longer side of the grid, so that no two rows share a position.
    """
    grid_rows, grid_columns = image.grid
    token_extent = np.ones(size.tokens, dtype=np.int64)
    token_extent[image_slot] += image.num_rows
    token_step = np.ones(size.tokens, dtype=np.int64)
    token_step[image_slot] += max(grid_rows, grid_columns)

    token_row = np.cumsum(token_extent) - token_extent
    image_row = token_row[image_slot] + 1
    place = np.cumsum(token_step) - token_step
    place -= np.repeat(place[first_slot], lengths)

    patch = np.arange(image.num_rows)
    patch_row = (image_row[:, None] + patch).ravel()
    row_source = np.full(capacity.rows, capacity.tokens + capacity.images * image.num_rows, dtype=np.int64)
    row_source[token_row] = np.arange(size.tokens)
    row_source[patch_row] = capacity.tokens + np.arange(patch_row.size)
    row_image = np.full(capacity.rows, capacity.images, dtype=np.int64)
    row_image[patch_row] = np.repeat(np.arange(size.images), image.num_rows)

    position = np.zeros((capacity.rows, 3), dtype=np.int32)
    position[token_row] = place[:, None]
    patch_place = np.stack([0 * patch, patch // grid_columns, patch % grid_columns], axis=1)
    position[patch_row] = (place[image_slot][:, None, None] + 1 + patch_place).reshape(-1, 3)

    # The row where each sequence starts; after the last one the padding is a sequence, the rest of them is empty.
    cu_seqlens = np.full(capacity.sequences + 1, capacity.rows, dtype=np.int32)
    cu_seqlens[: len(lengths)] = token_row[first_slot]
    cu_seqlens[len(lengths)] = size.rows
    return _Layout(
        token_row=token_row,
        image_row=image_row,
        row_source=row_source,
        row_image=row_image,
        position=position,
        cu_seqlens=cu_seqlens,
    )


def _pad(values: np.ndarray, length: int, fill: int = 0) -> torch.Tensor:
    """`values` extended to `length` along the first dimension."""
    padded = np.full((length, *values.shape[1:]), fill, dtype=values.dtype)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
