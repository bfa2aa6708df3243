"""Samples of many lengths become one sequence of fixed size, with hardly any padding."""

# Shapes: n tokens, i images, p patches, s samples; T trunk rows, C a power of two and one.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int32, Int64

from oneflow_dist.containers import Capacity, Counts, NoisySample, PackedBatch

FEWEST_SEQUENCES = 64  # that cu_seqlens has room for; more are a power of two


def size_of(samples: list[NoisySample]) -> Capacity:
    """The room that the samples need together, without padding."""
    num_tokens = sum(len(s.tokens) for s in samples)
    num_patches = sum(len(s.images.patches) for s in samples)
    return Capacity(
        rows=num_tokens + num_patches,
        tokens=num_tokens,
        bag_tokens=sum(len(s.bag_tokens) for s in samples),
        images=sum(len(s.images) for s in samples),
        patches=num_patches,
        sequences=len(samples),
    )


def choose_samples(sizes: list[Capacity], capacity: Capacity) -> list[int]:
    """Which of the waiting samples make the next pack.

    The oldest go first, so that no sample waits for long and a pack is a fair draw; the gap that they leave is filled
    best-fit, the largest that still fits each time. One sequence is kept free for the padding.

    Returns:
        Indices into `sizes`, never empty.
    """
    need = np.array([(s.rows, s.tokens, s.bag_tokens, s.images, s.patches, s.sequences) for s in sizes])
    c = capacity
    room = np.array((c.rows, c.tokens, c.bag_tokens, c.images, c.patches, c.sequences - 1), dtype=np.int64)
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


def pack(samples: list[NoisySample], capacity: Capacity | None, normalize: str = "batch") -> PackedBatch:
    """Lay samples end to end. Training and generation both come through here.

    Args:
        samples: at least one; together they fit in `capacity`.
        capacity: whose rows and images it is padded to, as compiled blocks want it; None pads nothing.
        normalize: what an open slot weighs in the text losses, see `compute_losses`: 1 ("batch"), or 1 / open slots of
            its sample ("paper").
    """
    size = size_of(samples)
    room = size if capacity is None else capacity
    sequence = np.arange(len(samples))
    lengths = np.array([len(s.tokens) for s in samples])
    first_slot = np.cumsum(lengths) - lengths  # of each sample
    image_slot = _of_pack([s.images.token for s in samples], first_slot)
    bag_slot = _of_pack([s.bag_slot for s in samples], first_slot)

    is_open = np.concatenate([s.is_open for s in samples])
    num_open = np.add.reduceat(is_open.astype(np.int64), first_slot)
    open_slots = np.repeat(np.maximum(num_open, 1), lengths) if normalize == "paper" else 1.0
    slot_weight = (is_open / open_slots).astype(np.float32)

    grid = np.concatenate([s.images.grid for s in samples])
    layout = _lay_rows(lengths, image_slot, grid, room)
    is_moving = np.concatenate([s.is_moving for s in samples])[layout.patch_image]
    sequence_rows = np.diff(layout.cu_seqlens[: len(samples) + 1]).astype(np.int64)
    num_filled = len(np.unique(bag_slot))
    return PackedBatch(
        tokens=_joined([s.tokens for s in samples]),
        token_row=torch.from_numpy(layout.token_row),
        token_sequence=torch.from_numpy(np.repeat(sequence, lengths)),
        slot_weight=torch.from_numpy(slot_weight),
        missing_count=torch.from_numpy(np.bincount(bag_slot, minlength=size.tokens).astype(np.float32)),
        bag_tokens=_joined([s.bag_tokens for s in samples]),
        bag_slot=torch.from_numpy(bag_slot),
        bag_weight=torch.from_numpy(slot_weight[bag_slot]),
        image_time=F.pad(_joined([s.images.time.astype(np.float32) for s in samples]), (0, room.images - size.images)),
        patches=_joined([s.images.patches for s in samples]),
        velocity=_joined([s.velocity for s in samples]),
        patch_image=torch.from_numpy(layout.patch_image),
        patch_row=torch.from_numpy(layout.patch_row),
        patch_weight=torch.from_numpy(is_moving.astype(np.float32)),
        row_image=torch.from_numpy(layout.row_image),
        position=torch.from_numpy(layout.position),
        cu_seqlens=torch.from_numpy(layout.cu_seqlens),
        text_time=torch.from_numpy(np.array([s.text_time for s in samples], dtype=np.float32)),
        num_filled=num_filled,
        max_seqlen=_next_power_of_two(int(np.diff(layout.cu_seqlens).max())),
        counts=Counts(
            open_slots=int(is_open.sum()),
            text_sequences=int((num_open > 0).sum()),
            image_elements=int(is_moving.sum()) * samples[0].velocity.shape[1],
            rows=size.rows,
            padded_rows=len(layout.position),
            text_tokens=size.tokens,
            bag_tokens=size.bag_tokens,
            filled_slots=num_filled,
            sequences=len(samples),
            attention_pairs=int(np.square(sequence_rows).sum()),
        ),
        keys=tuple(s.key for s in samples),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where everything lies in the trunk's rows; fields as in `PackedBatch`."""

    token_row: Int64[np.ndarray, "n"]
    patch_image: Int64[np.ndarray, "p"]
    patch_row: Int64[np.ndarray, "p"]
    row_image: Int64[np.ndarray, "T"]
    position: Int32[np.ndarray, "T 3"]
    cu_seqlens: Int32[np.ndarray, "C"]


def _lay_rows(
    lengths: Int64[np.ndarray, "s"],
    image_slot: Int64[np.ndarray, "i"],
    grid: Int64[np.ndarray, "i 2"],
    room: Capacity,
) -> _Layout:
    """Rows, their inputs and their positions.

    Of a sample "a IMAGE b", whose image has 2 x 3 patches:

        row       0        1        2        3        4        5        6        7        8
        input     a        IMAGE    patch 0  patch 1  patch 2  patch 3  patch 4  patch 5  b
        position  0, 0, 0  1, 1, 1  2, 2, 2  2, 2, 3  2, 2, 4  2, 3, 2  2, 3, 3  2, 3, 4  5, 5, 5

    A token stands at (p, p, p), patch (r, c) of an image whose token stands at p at (p+1, p+1+r, p+1+c), and what
    follows the image at p + 1 + the longer side of its grid, so that no two rows share a position.

    Args:
        lengths: tokens of each sample.
        image_slot: which tokens of the pack are images.
    """
    num_tokens, num_patches = int(lengths.sum()), grid.prod(axis=1)
    rows_of_token, steps_of_token = np.ones((2, num_tokens), dtype=np.int64)
    rows_of_token[image_slot] += num_patches
    steps_of_token[image_slot] += grid.max(axis=1)

    first_slot = np.cumsum(lengths) - lengths
    token_row = np.cumsum(rows_of_token) - rows_of_token
    token_position = np.cumsum(steps_of_token) - steps_of_token
    token_position -= np.repeat(token_position[first_slot], lengths)

    patch = np.arange(num_patches.sum())
    patch_image = np.repeat(np.arange(len(grid)), num_patches)
    patch_in_image = patch - (np.cumsum(num_patches) - num_patches)[patch_image]
    patch_row = token_row[image_slot][patch_image] + 1 + patch_in_image
    row_image = np.full(room.rows, room.images, dtype=np.int64)
    row_image[patch_row] = patch_image

    position = np.zeros((room.rows, 3), dtype=np.int32)
    position[token_row] = token_position[:, None]
    in_image = np.stack([0 * patch, *np.divmod(patch_in_image, grid[patch_image, 1])], axis=1)
    position[patch_row] = token_position[image_slot][patch_image, None] + 1 + in_image

    # After the last sequence the padding is one. The rest are empty: attention starts programs for each, so they are
    # few, and compiled code sees few lengths.
    num_bounds = max(FEWEST_SEQUENCES, _next_power_of_two(len(lengths) + 1)) + 1
    cu_seqlens = np.full(num_bounds, room.rows, dtype=np.int32)
    cu_seqlens[: len(lengths)] = token_row[first_slot]
    cu_seqlens[len(lengths)] = rows_of_token.sum()
    return _Layout(
        token_row=token_row,
        patch_image=patch_image,
        patch_row=patch_row,
        row_image=row_image,
        position=position,
        cu_seqlens=cu_seqlens,
    )


def _of_pack(slots: list[Int64[np.ndarray, "_"]], first_slot: Int64[np.ndarray, "s"]) -> Int64[np.ndarray, "m"]:
    """Slots of each sample as slots of the pack."""
    return np.concatenate(slots) + np.repeat(first_slot, [len(part) for part in slots])


def _joined(parts: list[np.ndarray]) -> torch.Tensor:
    """The parts end to end."""
    return torch.from_numpy(np.concatenate(parts))


def _next_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
