"""Samples of many lengths become one sequence of fixed size, with hardly any padding."""

# Shapes: n tokens, i pieces, p patches, s samples; T trunk rows, C a power of two and one.

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int32, Int64

from oneflow_dist.containers import Capacity, Counts, NoisyPieces, NoisySample, PackedBatch, PackedPieces
from oneflow_dist.objective import Sees

FEWEST_SEQUENCES = 64  # that cu_seqlens has room for; more are a power of two


def size_of(samples: list[NoisySample]) -> Capacity:
    """The room that the samples need together, without padding."""
    num_tokens = sum(len(s.tokens) for s in samples)
    kinds = list(zip(*(s.pieces for s in samples), strict=True))
    patches = tuple(sum(len(noisy.pieces.patches) for noisy in kind) for kind in kinds)
    return Capacity(
        rows=num_tokens + sum(patches),
        tokens=num_tokens,
        bag_tokens=sum(len(s.bags.tokens) for s in samples),
        sequences=len(samples),
        pieces=tuple(sum(len(noisy.pieces) for noisy in kind) for kind in kinds),
        patches=patches,
    )


def pack(
    samples: list[NoisySample],
    capacity: Capacity | None,
    normalize: Literal["batch", "paper"] = "batch",
    sees: Sees = "all",
) -> PackedBatch:
    """Lay samples end to end. Training and generation both come through here.

    Args:
        samples: at least one; together they fit in `capacity`.
        capacity: whose rows and pieces it is padded to, as compiled blocks want it; None pads nothing.
        normalize: what an open slot weighs in the text losses, see `compute_losses`: 1 ("batch"), or 1 / open slots of
            its sample ("paper").
        sees: which rows of its sequence a row sees, see `_lay_rows`.
    """
    size = size_of(samples)
    room = size if capacity is None else capacity
    sequence = np.arange(len(samples))
    lengths = np.array([len(s.tokens) for s in samples])
    first_slot = np.cumsum(lengths) - lengths  # of each sample
    kinds = [list(kind) for kind in zip(*(s.pieces for s in samples), strict=True)]
    pieces = [noisy.pieces for kind in kinds for noisy in kind]
    piece_slot = np.concatenate(
        [first_slot[:0], *(_of_pack([n.pieces.token for n in kind], first_slot) for kind in kinds)]
    )
    bag_slot = _of_pack([s.bags.slot for s in samples], first_slot)

    is_open = np.concatenate([s.is_open for s in samples])
    num_open = np.add.reduceat(is_open.astype(np.int64), first_slot)
    open_slots = np.repeat(np.maximum(num_open, 1), lengths) if normalize == "paper" else 1.0
    slot_weight = (is_open / open_slots).astype(np.float32)

    grid = np.concatenate([np.zeros((0, 3), np.int64), *(p.grid for p in pieces)])
    stride = np.concatenate([np.zeros(0), *(p.stride for p in pieces)])
    block_ends = [np.array(s.block_ends, dtype=np.int64) for s in samples]
    layout = _lay_rows(lengths, piece_slot, grid, stride, _of_pack(block_ends, first_slot), sees, room)
    patch_rows = np.split(layout.patch_row, np.cumsum(size.patches, dtype=np.int64))[:-1]
    packed = [_pack_pieces(*own) for own in zip(kinds, patch_rows, room.pieces, strict=True)]
    sequence_rows = np.diff(layout.cu_seqlens[: len(samples) + 1]).astype(np.int64)
    num_filled = len(np.unique(bag_slot))
    return PackedBatch(
        tokens=_joined([s.tokens for s in samples]),
        token_row=torch.from_numpy(layout.token_row),
        token_sequence=torch.from_numpy(np.repeat(sequence, lengths)),
        slot_weight=torch.from_numpy(slot_weight),
        missing_count=_joined([s.bags.missing_count for s in samples]),
        filled_prob=_joined([s.bags.filled_prob for s in samples]),
        bag_tokens=_joined([s.bags.tokens for s in samples]),
        bag_slot=torch.from_numpy(bag_slot),
        bag_weight=torch.from_numpy(np.concatenate([s.bags.weight for s in samples]) * slot_weight[bag_slot]),
        pieces=tuple(packed),
        position=torch.from_numpy(layout.position),
        cu_seqlens=torch.from_numpy(layout.cu_seqlens),
        row_end=None if layout.row_end is None else torch.from_numpy(layout.row_end),
        text_time=torch.from_numpy(np.array([s.text_time for s in samples], dtype=np.float32)),
        attention_scale=_attention_scale(samples, sequence_rows, room.rows),
        draw=torch.tensor(_draw_of(samples)),
        num_filled=num_filled,
        max_seqlen=_next_power_of_two(int(np.diff(layout.cu_seqlens).max())),
        counts=Counts(
            open_slots=int(is_open.sum()),
            text_sequences=int((num_open > 0).sum()),
            rows=size.rows,
            padded_rows=len(layout.position),
            text_tokens=size.tokens,
            bag_tokens=size.bag_tokens,
            filled_slots=num_filled,
            sequences=len(samples),
            attention_pairs=_attention_pairs(layout, sequence_rows),
            patches=size.patches,
            moving_elements=tuple(int(p.patch_weight.sum()) * p.velocity.shape[1] for p in packed),
        ),
        keys=tuple(s.key for s in samples),
    )


def silence(batch: PackedBatch) -> PackedBatch:
    """The same rows, of which nothing is learnt and nothing is counted."""
    return replace(
        batch,
        slot_weight=torch.zeros_like(batch.slot_weight),
        bag_weight=torch.zeros_like(batch.bag_weight),
        pieces=tuple(replace(p, patch_weight=torch.zeros_like(p.patch_weight)) for p in batch.pieces),
        counts=Counts.zeros(len(batch.pieces)),
    )


def rows_of(batch: PackedBatch, is_kept: Bool[torch.Tensor, "T"], multiple: int) -> PackedBatch:
    """Some rows of a pack without bags, padded to a multiple: each stands where it stood in its document.

    A sequence may have no rows left. What was counted is still of the whole.

    Args:
        is_kept: of the patches of a piece all or none.
    """
    new_row = is_kept.cumsum(0) - 1
    has_token = is_kept[batch.token_row]
    num_kept = F.pad(is_kept.cumsum(0), (1, 0))
    num_rows = int(num_kept[-1])
    padding = -num_rows % multiple
    cu_seqlens = num_kept[batch.cu_seqlens.long()].int()
    cu_seqlens[len(batch.text_time) + 1 :] += padding
    scale = batch.attention_scale
    row_end = None
    if batch.row_end is not None:
        row_end = F.pad(num_kept[batch.row_end[is_kept].long()].int(), (0, padding), value=num_rows + padding)
    return replace(
        batch,
        tokens=batch.tokens[has_token],
        token_row=new_row[batch.token_row[has_token]],
        token_sequence=batch.token_sequence[has_token],
        slot_weight=batch.slot_weight[has_token],
        missing_count=batch.missing_count[has_token],
        filled_prob=batch.filled_prob[has_token],
        pieces=tuple(_pieces_of(pieces, is_kept, new_row) for pieces in batch.pieces),
        position=F.pad(batch.position[is_kept], (0, 0, 0, padding)),
        cu_seqlens=cu_seqlens,
        row_end=row_end,
        attention_scale=None if scale is None else F.pad(scale[is_kept], (0, padding), value=1.0),
    )


def _pieces_of(
    pieces: PackedPieces, is_kept: Bool[torch.Tensor, "T"], new_row: Int64[torch.Tensor, "T"]
) -> PackedPieces:
    """Those whose patches have rows among the kept ones."""
    has_patch = is_kept[pieces.patch_row]
    has_piece = torch.zeros(len(pieces.time), dtype=torch.bool)
    has_piece[pieces.patch_piece[has_patch]] = True
    return PackedPieces(
        time=pieces.time[has_piece],
        grid=pieces.grid[has_piece],
        patches=pieces.patches[has_patch],
        velocity=pieces.velocity[has_patch],
        sequence=pieces.sequence[has_piece],
        patch_piece=(has_piece.cumsum(0) - 1)[pieces.patch_piece[has_patch]],
        patch_row=new_row[pieces.patch_row[has_patch]],
        patch_weight=pieces.patch_weight[has_patch],
    )


def _pack_pieces(kind: list[NoisyPieces], patch_row: Int64[np.ndarray, "p"], room: int) -> PackedPieces:
    """Those of one modality, with times and grids for `room` of them."""
    num_patches = np.concatenate([noisy.pieces.num_patches for noisy in kind])
    num_pieces = len(num_patches)
    sequence = torch.arange(len(kind)).repeat_interleave(torch.tensor([len(noisy.pieces) for noisy in kind]))
    is_moving = np.concatenate([noisy.is_moving for noisy in kind])
    return PackedPieces(
        time=F.pad(_joined([noisy.pieces.time.astype(np.float32) for noisy in kind]), (0, room - num_pieces)),
        grid=F.pad(_joined([noisy.pieces.grid for noisy in kind]), (0, 0, 0, room - num_pieces), value=1),
        patches=_joined([noisy.pieces.patches for noisy in kind]),
        velocity=_joined([noisy.velocity for noisy in kind]),
        sequence=F.pad(sequence, (0, room - num_pieces)),
        patch_piece=torch.from_numpy(np.repeat(np.arange(num_pieces), num_patches)),
        patch_row=torch.from_numpy(patch_row),
        patch_weight=torch.from_numpy(is_moving.repeat(num_patches).astype(np.float32)),
    )


def _attention_scale(
    samples: list[NoisySample], sequence_rows: Int64[np.ndarray, "s"], num_rows: int
) -> Float32[torch.Tensor, "T"] | None:
    """That of each row; None where it is 1, as in training."""
    of_samples = np.array([s.attention_scale for s in samples])
    if (of_samples == 1.0).all():
        return None
    scale = np.ones(num_rows, dtype=np.float32)
    scale[: sequence_rows.sum()] = of_samples.repeat(sequence_rows)
    return torch.from_numpy(scale)


def _draw_of(samples: list[NoisySample]) -> int:
    """62 bits of what the samples are, and of their times, which are others in another pass."""
    content = json.dumps([[sample.key, sample.text_time] for sample in samples])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little") >> 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where everything lies in the trunk's rows; fields as in `PackedBatch`."""

    token_row: Int64[np.ndarray, "n"]
    patch_row: Int64[np.ndarray, "p"]
    position: Float32[np.ndarray, "T 3"]
    cu_seqlens: Int32[np.ndarray, "C"]
    row_end: Int32[np.ndarray, "T"] | None


def _lay_rows(
    lengths: Int64[np.ndarray, "s"],
    piece_slot: Int64[np.ndarray, "i"],
    grid: Int64[np.ndarray, "i 3"],
    stride: Float[np.ndarray, "i"],
    block_end: Int64[np.ndarray, "b"],
    sees: Sees,
    room: Capacity,
) -> _Layout:
    """Rows, their inputs and their positions.

    Of a sample "a IMAGE b", whose image has 2 x 3 patches:

        row       0        1        2        3        4        5        6        7        8
        input     a        IMAGE    patch 0  patch 1  patch 2  patch 3  patch 4  patch 5  b
        position  0, 0, 0  1, 1, 1  2, 2, 2  2, 2, 3  2, 2, 4  2, 3, 2  2, 3, 3  2, 3, 4  5, 5, 5

    A token stands at (p, p, p), patch (t, r, c) of a piece whose token stands at p at (p+1+t, p+1+r, p+1+c), t, r and c
    in strides, and what follows the piece at p + 1 + the longest side of its grid: no two rows share a position.

    A row sees all of its sequence; or, where `sees` is "prompt", that up to the end of its block; or, of "past", what
    stands before it, itself, and the rest of its piece. Then the slot behind the last token of a block is one of the
    next, so that the token's row is the next one's first; that of a piece comes after its patches.

    Args:
        lengths: tokens of each sample.
        piece_slot: which tokens of the pack are pieces: modality by modality, in each in order.
        block_end: the token of the pack before which each finished block ends.
    """
    num_tokens, num_patches = int(lengths.sum()), grid.prod(axis=1)
    rows_of_token, steps_of_token = np.ones((2, num_tokens), dtype=np.int64)
    rows_of_token[piece_slot] += num_patches
    steps_of_token[piece_slot] += np.ceil(grid.max(axis=1) * stride - 1e-9).astype(np.int64)

    first_slot = np.cumsum(lengths) - lengths
    token_row = np.cumsum(rows_of_token) - rows_of_token
    token_position = np.cumsum(steps_of_token) - steps_of_token
    token_position -= np.repeat(token_position[first_slot], lengths)

    patch_piece = np.repeat(np.arange(len(grid)), num_patches)
    in_piece = np.arange(num_patches.sum()) - (np.cumsum(num_patches) - num_patches)[patch_piece]
    patch_row = token_row[piece_slot][patch_piece] + 1 + in_piece
    if sees != "all":
        is_last = np.isin(piece_slot + 1, block_end)
        patch_row -= is_last[patch_piece]
        token_row[piece_slot] += is_last * num_patches

    position = np.zeros((room.rows, 3), dtype=np.float32)
    position[token_row] = token_position[:, None]
    of_frame, column = np.divmod(in_piece, grid[patch_piece, 2])
    place = np.stack([*np.divmod(of_frame, grid[patch_piece, 1]), column], axis=1)
    position[patch_row] = token_position[piece_slot][patch_piece, None] + 1 + place * stride[patch_piece, None]

    # After the last sequence the padding is one. The rest are empty: attention starts programs for each, so they are
    # few, and compiled code sees few lengths.
    num_bounds = max(FEWEST_SEQUENCES, _next_power_of_two(len(lengths) + 1)) + 1
    cu_seqlens = np.full(num_bounds, room.rows, dtype=np.int32)
    cu_seqlens[0] = 0
    cu_seqlens[1 : len(lengths) + 1] = rows_of_token.cumsum()[np.append(first_slot[1:], num_tokens) - 1]
    row_end = None
    if sees != "all":
        of_pieces = patch_row[np.cumsum(num_patches)[num_patches > 0] - 1] + 1
        own_ends = [token_row[block_end - 1]] if sees == "prompt" else [token_row + 1, of_pieces]
        ends = np.sort(np.concatenate([*own_ends, cu_seqlens[1:]]))
        row_end = ends[np.searchsorted(ends, np.arange(room.rows), side="right")].astype(np.int32)
    return _Layout(
        token_row=token_row,
        patch_row=patch_row,
        position=position,
        cu_seqlens=cu_seqlens,
        row_end=row_end,
    )


def _attention_pairs(layout: _Layout, sequence_rows: Int64[np.ndarray, "s"]) -> int:
    """How many pairs of a row and a key that it sees there are, padding not counted."""
    if layout.row_end is None:
        return int(np.square(sequence_rows).sum())
    start = layout.cu_seqlens[: len(sequence_rows)].repeat(sequence_rows)
    return int((layout.row_end[: len(start)].astype(np.int64) - start).sum())


def _of_pack(slots: list[Int64[np.ndarray, "_"]], first_slot: Int64[np.ndarray, "s"]) -> Int64[np.ndarray, "m"]:
    """Slots of each sample as slots of the pack."""
    return np.concatenate(slots) + np.repeat(first_slot, [len(part) for part in slots])


def _joined(parts: list[np.ndarray]) -> torch.Tensor:
    """The parts end to end."""
    return torch.from_numpy(np.concatenate(parts))


def _next_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
