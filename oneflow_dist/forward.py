"""Passes of the model over documents that are being written; rows that cannot change any more are computed once."""

# Shapes: T rows, N tokens, S sequences of one pack; L layers, p rows of a document that are kept, g key heads, d width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from oneflow_dist.containers import NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack, rows_of, size_of
from oneflow_dist.model.kv_cache import KVCache
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.objective import Sees
from oneflow_dist.parallel.dealing import predict

Name = tuple[str, str]  # of a document, and of a copy of it


class Forward:
    """The model as generation sees it: samples in, a prediction for all of their tokens and patches out.

    Where rows of a prompt see the prompt alone, or every row its past, those before what is being written are the same
    in every step: their keys and values are kept, and a step computes the others. Of rows that are not computed, a
    prediction says zeros, which nobody reads.
    """

    def __init__(self, model: OneFlow, sees: Sees, keeps: bool = True):
        """`keeps`: False computes all rows in every step, with the same result."""
        self.model = model
        self.sees = sees
        self.keeps = keeps and sees != "all"
        self.num_rows = 0  # that have been computed
        self.num_passes = 0
        self._kept: dict[Name, Float[Tensor, "L 2 p g d"]] = {}
        self._joined: tuple[tuple[Name, ...], Tensor | None] | None = None  # those of the last pass, end to end

    def __call__(self, samples: list[NoisySample], names: Sequence[Name]) -> Prediction:
        """One pass over whole documents.

        Args:
            names: of the samples. Under one name a prompt only ever grows by whole blocks; where rows see their past, a
                document grows at its end, where at most one piece is moving.
        """
        batch = self._pack_evenly(samples)
        if not self.keeps:
            self._count(batch.counts.rows)
            return predict(self.model, batch)
        assert batch.row_end is not None
        bounds = batch.cu_seqlens[: len(samples) + 1].long().numpy()
        start, end = bounds[:-1], bounds[1:]
        if self.sees == "past":
            self._keep_prompts(batch, samples, names)
        while True:
            first = start + self._num_kept(names)
            block_end = batch.row_end[torch.from_numpy(first)].long().numpy()
            is_finished = block_end < end  # a block that has not been computed yet
            if not is_finished.any():
                break
            self._keep(batch, first, np.where(is_finished, block_end, first), names)
        is_computed = _between(first, end, len(batch.position))
        caches, prediction = self._run(batch, is_computed, names)
        if self.sees == "past":  # of a document without a moving piece the last row is done, too
            self._store(caches, end - first, [not sample.has_moving for sample in samples], names)
        return _spread(prediction, batch, is_computed)

    def forget(self, key: str) -> None:
        """Let go of a document that is finished, and of its copies."""
        self._kept = {name: kept for name, kept in self._kept.items() if name[0] != key}
        self._joined = None

    def _count(self, num_rows: int) -> None:
        self.num_rows += num_rows
        self.num_passes += 1

    @property
    def num_bytes(self) -> int:
        """Of keys and values that are kept."""
        return sum(kept.nbytes for kept in self._kept.values())

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _num_kept(self, names: Sequence[Name]) -> Int64[np.ndarray, "S"]:
        return np.array([self._kept[name].shape[2] if name in self._kept else 0 for name in names])

    def _pack_evenly(self, samples: list[NoisySample]) -> PackedBatch:
        """A pack of these samples alone, whose rows can be dealt out."""
        size, multiple = size_of(samples), self.model.num_parts
        rows = -(-size.rows // multiple) * multiple
        return pack(samples, replace(size, rows=rows), sees=self.sees)

    def _keep(
        self,
        batch: PackedBatch,
        first: Int64[np.ndarray, "S"],
        last: Int64[np.ndarray, "S"],
        names: Sequence[Name],
    ) -> None:
        """Compute rows [first, last) of each sequence, and keep their keys and values."""
        caches, _ = self._run(batch, _between(first, last, len(batch.position)), names)
        self._store(caches, last - first, [True] * len(names), names)

    def _keep_prompts(self, batch: PackedBatch, samples: list[NoisySample], names: Sequence[Name]) -> None:
        """Compute at once what new documents begin with: all rows before a moving piece, or before the last."""
        bounds = batch.cu_seqlens[: len(samples) + 1].long().numpy()
        start, last = bounds[:-1], bounds[1:] - 1
        for number, sample in enumerate(samples):
            for pieces, noisy in zip(batch.pieces, sample.pieces, strict=True):
                if noisy.is_moving.any():
                    of_sample = pieces.sequence[pieces.patch_piece] == number
                    last[number] = int(pieces.patch_row[of_sample & (pieces.patch_weight > 0.0)].min())
        last = np.where(self._num_kept(names) == 0, last, start)
        if (last > start).any():
            part = rows_of(batch, torch.from_numpy(_between(start, last, len(batch.position))), self.model.num_parts)
            self._count(int((last - start).sum()))
            caches = [KVCache(None, None, None) for _ in self.model.blocks]
            predict(self.model, part, caches)
            self._store(caches, last - start, [True] * len(names), names)

    def _store(
        self, caches: list[KVCache], counts: Int64[np.ndarray, "S"], is_kept: Sequence[bool], names: Sequence[Name]
    ) -> None:
        """Keep the keys and values of a pass, which had so many rows of each sequence."""
        new = torch.stack([cache.new for cache in caches if cache.new is not None])
        parts = new[:, :, : counts.sum()].split(counts.tolist(), dim=2)
        for name, part, stays in zip(names, parts, is_kept, strict=True):
            if stays and part.shape[2]:
                self._kept[name] = torch.cat([self._kept[name], part], dim=2) if name in self._kept else part.clone()
        self._joined = None

    def _run(
        self, batch: PackedBatch, is_computed: Bool[np.ndarray, "T"], names: Sequence[Name]
    ) -> tuple[list[KVCache], Prediction]:
        """One pass over some rows of a pack, which see what is kept of the rows before them."""
        part = rows_of(batch, torch.from_numpy(is_computed), self.model.num_parts)
        self._count(int(is_computed.sum()))
        num_new = part.cu_seqlens.diff().numpy()
        num_kept = np.zeros(len(num_new), dtype=np.int64)
        num_kept[: len(names)] = self._num_kept(names)
        sequence = np.arange(len(num_new))
        order = np.argsort(np.append(sequence.repeat(num_kept), sequence.repeat(num_new)), kind="stable")
        is_ordered = bool((order == np.arange(len(order))).all())  # as of one document, which is not copied again
        seqlens = np.append(0, np.cumsum(num_kept + num_new)).astype(np.int32)
        own_order = None if is_ordered else torch.from_numpy(order).to(self._device)
        own_seqlens = torch.from_numpy(seqlens).to(self._device)
        before = self._joined_keys(names)
        caches = [
            KVCache(None if before is None else before[layer], own_order, own_seqlens)
            for layer in range(len(self.model.blocks))
        ]
        return caches, predict(self.model, part, caches)

    def _joined_keys(self, names: Sequence[Name]) -> Float[Tensor, "L 2 P g d"] | None:
        """What is kept of some documents, end to end; of the same ones step after step, it is joined once."""
        if self._joined is None or self._joined[0] != tuple(names):
            parts = [self._kept[name] for name in names if name in self._kept]
            self._joined = tuple(names), torch.cat(parts, dim=2) if parts else None
        return self._joined[1]


def _between(first: Int64[np.ndarray, "S"], last: Int64[np.ndarray, "S"], num_rows: int) -> Bool[np.ndarray, "T"]:
    """Whether a row is in [first, last) of any sequence; they are in order."""
    change = np.zeros(num_rows + 1, dtype=np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last, -1)
    return change[:-1].cumsum() > 0


def _spread(part: Prediction, batch: PackedBatch, is_computed: Bool[np.ndarray, "T"]) -> Prediction:
    """What is said of some tokens and patches of a pack as said of all, with zeros for the others."""
    is_there = torch.from_numpy(is_computed)

    def spread(values: Shaped[Tensor, "m *v"], rows: Int64[Tensor, "n"]) -> Shaped[Tensor, "n *v"]:
        place = is_there[rows].nonzero().flatten().to(values.device)
        return values.new_zeros(len(rows), *values.shape[1:]).index_copy(0, place, values)

    return Prediction(
        zero_logit=None if part.zero_logit is None else spread(part.zero_logit, batch.token_row),
        log_rate=None if part.log_rate is None else spread(part.log_rate, batch.token_row),
        bag_loss=part.bag_loss,
        velocity=tuple(spread(v, own.patch_row) for v, own in zip(part.velocity, batch.pieces, strict=True)),
        slot_hidden=spread(part.slot_hidden, batch.token_row),
    )
