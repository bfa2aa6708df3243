"""What of a pack a rank answers for, where several compute it together, and what they have said of it as a whole."""

# Shapes: T trunk rows, n things in ascending rows, m of them on this rank.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor

from oneflow_dist.containers import Counts, PackedBatch, PackedPieces, Prediction
from oneflow_dist.model.axis import Axis
from oneflow_dist.model.kv_cache import KVCache
from oneflow_dist.model.oneflow import OneFlow


def deal_pack(batch: PackedBatch, model: OneFlow) -> PackedBatch:
    """This rank's share of a pack: every loss, and every count, enters the sums over ranks once."""
    return count_once(part_of_context(batch, model.context, model.is_seen_whole), model.axis)


def part_of_context(batch: PackedBatch, context: Axis, is_seen_whole: Sequence[bool]) -> PackedBatch:
    """The tokens, bags and patches on this rank's rows, which keep their numbers; who sees whom is still of all rows.

    Where a piece has to be seen whole every rank of the group has all patches, and its losses are those of its own.
    """
    if context.size == 1:
        return batch
    rows = context.local_slice(len(batch.position))
    tokens = _those_in(rows, batch.token_row)
    bags = _those_in(tokens, batch.bag_slot)
    bag_slot = batch.bag_slot[bags] - tokens.start
    names = ("tokens", "token_row", "token_sequence", "slot_weight", "missing_count", "filled_prob")
    return dataclasses.replace(
        batch,
        **{name: getattr(batch, name)[tokens] for name in names},
        bag_tokens=batch.bag_tokens[bags],
        bag_slot=bag_slot,
        bag_weight=batch.bag_weight[bags],
        pieces=tuple(_pieces_in(rows, *own) for own in zip(batch.pieces, is_seen_whole, strict=True)),
        num_filled=len(bag_slot.unique()),
        counts=batch.counts if context.rank == 0 else Counts.zeros(len(batch.pieces)),
    )


def count_once(batch: PackedBatch, tensor: Axis) -> PackedBatch:
    """The batch as a rank of a tensor group answers for it: all of it, but the others' losses weigh nothing.

    The loss of bags is made by all ranks together, who answer for equal shares of it.
    """
    if tensor.size == 1:
        return batch

    def share(weight: Tensor) -> Tensor:
        shared = torch.zeros_like(weight)
        part = tensor.local_slice(len(weight))
        shared[part] = weight[part]
        return shared

    return dataclasses.replace(
        batch,
        slot_weight=share(batch.slot_weight),
        pieces=tuple(dataclasses.replace(p, patch_weight=share(p.patch_weight)) for p in batch.pieces),
        counts=batch.counts if tensor.rank == 0 else Counts.zeros(len(batch.pieces)),
    )


def predict(model: OneFlow, batch: PackedBatch, *caches: Sequence[KVCache | None]) -> Prediction:
    """What the ranks of a context group together say of a pack in host memory, all of it on each of them; no gradient.

    Its loss of bags stays this rank's own.

    Args:
        caches: none, or those of all layers, as `OneFlow` takes them.
    """
    context, device = model.context, next(model.parameters()).device
    said = model(part_of_context(batch, context, model.is_seen_whole).to(device), *caches)
    if context.size == 1:
        return said
    join = functools.partial(_join, context=context, num_rows=len(batch.position))
    return dataclasses.replace(
        said,
        zero_logit=None if said.zero_logit is None else join(said.zero_logit, batch.token_row),
        log_rate=None if said.log_rate is None else join(said.log_rate, batch.token_row),
        slot_hidden=join(said.slot_hidden, batch.token_row),
        velocity=tuple(
            velocity if is_whole else join(velocity, pieces.patch_row)
            for velocity, pieces, is_whole in zip(said.velocity, batch.pieces, model.is_seen_whole, strict=True)
        ),
    )


def _join(
    values: Shaped[Tensor, "m *v"], row: Int64[Tensor, "n"], context: Axis, num_rows: int
) -> Shaped[Tensor, "n *v"]:
    """The values of all ranks end to end; each has those of its rows, and they may be of other numbers."""
    bounds = torch.arange(context.size + 1) * (num_rows // context.size)
    counts = torch.searchsorted(row, bounds).diff().tolist()
    most = max(1, *counts)
    padding = (0, 0) * (values.dim() - 1) + (0, most - len(values))
    parts = context.gather(F.pad(values, padding)).split(most)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _those_in(span: slice, place: Int64[Tensor, "n"]) -> slice:
    """Of things in ascending places those whose place is in the span."""
    first, last = torch.searchsorted(place, torch.tensor([span.start, span.stop], device=place.device)).tolist()
    return slice(first, last)


def _pieces_in(rows: slice, pieces: PackedPieces, is_seen_whole: bool) -> PackedPieces:
    patches = _those_in(rows, pieces.patch_row)
    if is_seen_whole:
        weight = torch.zeros_like(pieces.patch_weight)
        weight[patches] = pieces.patch_weight[patches]
        return dataclasses.replace(pieces, patch_weight=weight)
    names = ("patches", "velocity", "patch_piece", "patch_row", "patch_weight")
    own = {name: getattr(pieces, name)[patches] for name in names}
    return dataclasses.replace(pieces, **own)
