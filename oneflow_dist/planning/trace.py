"""One training step on fake tensors: the rank that holds most, of any number of ranks, without their memory."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch, PackedPieces
from oneflow_dist.data.loader import packs_of_rank
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.model.flops import num_trained
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.dealing import count_once
from oneflow_dist.parallel.mesh import data_rank, group_names, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import shard_model
from oneflow_dist.planning.recorder import Collective, Recorder
from oneflow_dist.stored_tensors import named_leaves
from oneflow_dist.training import agree, compute_gradients, update_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one step of one rank needs."""

    mesh: tuple[int, int, int]  # ranks along replicate, shard, tensor
    microbatches: int
    num_parameters: int  # of the whole model
    checkpoint_bytes: int  # of all ranks: weights, average and the optimizer's state
    held: dict[str, int]  # bytes of parameters, optimizer, average: always there
    peak: dict[str, int]  # bytes by kind when memory is fullest
    collectives: dict[Collective, int]  # how often; `group` is a mesh axis, or "all"
    flops: int  # computed, with what is computed again


def trace_step(config: Config, world_size: int) -> Trace:
    """Run a step of rank 0 on fake tensors, eagerly, under a process group that only pretends.

    Every pack is as full as it gets: all capacities are used and every missing token has a slot of its own.

    Raises:
        ValueError: the mesh or the packs do not fit the world size.
    """
    with fresh_processes(1) as pool:
        return pool.submit(trace_here, config, world_size).result()


def fresh_processes(count: int) -> ProcessPoolExecutor:
    """Runs each task in a process of its own: torch remembers groups of ranks, also of worlds that are gone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(count, mp_context=context, max_tasks_per_child=1)


def trace_here(config: Config, world_size: int) -> Trace:
    """`trace_step` in this process, which then has seen a world that is not."""
    warnings.filterwarnings("ignore")  # of code that never runs on real tensors
    logging.disable(logging.WARNING)
    with pretend_ranks(world_size):
        config = eager(config)
        mesh = make_mesh(config, world_size, "cpu")
        microbatches = packs_of_rank(config, data_rank(mesh, 1)[1])
        batch = full_pack(config)
        with fake_model(config, mesh) as (model, num_parameters, mode):
            optimizer = make_optimizer(model, config)
            remembered = sum(value.numel() for _, value in named_leaves(optimizer.tensors))
            batches = [count_once(without_values(batch, mode), model.axis)] * min(microbatches, 2)
            recorder, held = record_step(model, optimizer, batches, config)
            fewer = Recorder()
            if microbatches > 2:  # all but the last are alike: what two need more than one is what each of them needs
                fewer, _ = record_step(model, optimizer, batches[:1], config)
        groups = group_names(mesh, model.context)
        counts = _extrapolate(recorder.collectives, fewer.collectives, microbatches)
        flops = _extrapolate(recorder.flops, fewer.flops, microbatches)
        return Trace(
            mesh=(mesh.size(0), mesh.size(1), mesh.size(2)),
            microbatches=microbatches,
            num_parameters=num_parameters,
            checkpoint_bytes=4 * (num_parameters + num_trained(model) + remembered),
            held=held,
            peak=recorder.peak(),
            collectives={
                dataclasses.replace(collective, group=groups[collective.group]): count
                for collective, count in counts.items()
            },
            flops=sum(flops.values()),
        )


def eager(config: Config) -> Config:
    """The config without compilation and frozen encoders, which see no fakes."""
    modalities = {
        name: modality if modality.is_target else dataclasses.replace(modality, understanding="features")
        for name, modality in config.modality.items()
    }
    train = dataclasses.replace(config.train, compile=False)
    return dataclasses.replace(config, train=train, modality=modalities)


@contextmanager
def fake_model(config: Config, mesh: DeviceMesh) -> Iterator[tuple[OneFlow, int, FakeTensorMode]]:
    """Inside, the sharded model on fake tensors, the parameters of all of it, and the mode that makes more of them."""
    with torch.device("meta"):
        model = OneFlow(config, tensor_axis(mesh))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    shard_model(model, mesh, config)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model.to_empty(device="cpu")
        yield model, num_parameters, mode


def record_step(
    model: OneFlow, optimizer: AdamW, batches: list[PackedBatch], config: Config
) -> tuple[Recorder, dict[str, int]]:
    """What `train_step` does on the device, recorded; and the bytes that are held from step to step.

    On real tensors this is a real step, except that it does not look at its own results.
    """
    ema = MovingAverage(model, config.optim.ema_decay)
    with Recorder() as recorder:
        held = {
            "parameters": recorder.name("parameters", model.parameters()),
            "optimizer": recorder.name("optimizer", [value for _, value in named_leaves(optimizer.tensors)]),
            "average": recorder.name("average", ema.tensors.values()),
        }
        recorder.name("batch", batches[0].tensors())
        with unset_fake_temporarily():  # counts live on the host
            counts, _ = agree(batches)
        _, sums = compute_gradients(model, batches, counts, config)
        recorder.name("gradients", [parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        update_weights(model, optimizer, ema, sums, torch.zeros_like(sums[-1]), 1, config)
    return recorder, held


def full_pack(config: Config) -> PackedBatch:
    """A pack as full as packs get: as much text as there is room for, and pieces in the rows that are left.

    Every missing token has a slot of its own, and samples are as long as they may be.
    """
    room, longest = capacity_of(config), config.data.max_sample_rows
    num_tokens = min(room.tokens, room.rows)
    num_filled = min(room.bag_tokens, num_tokens)
    sequences, looks_back = -(-room.rows // longest), config.objective.looks_back
    token, bag = (torch.arange(count) for count in (num_tokens, room.bag_tokens))
    pieces, first = [], num_tokens
    for modality, most_pieces, most_patches in zip(config.modality.values(), room.pieces, room.patches, strict=True):
        pieces.append(_full_pieces(modality, most_pieces, first, min(most_patches, room.rows - first)))
        first += len(pieces[-1].patches)
    return PackedBatch(
        tokens=torch.zeros_like(token),
        token_row=token,
        token_sequence=token * sequences // num_tokens,
        slot_weight=torch.ones(num_tokens),
        missing_count=torch.ones(num_tokens),
        filled_prob=torch.ones(num_tokens),
        bag_tokens=torch.zeros_like(bag),
        bag_slot=bag * num_filled // room.bag_tokens,
        bag_weight=torch.ones(room.bag_tokens),
        pieces=tuple(pieces),
        position=torch.zeros(room.rows, 3),
        cu_seqlens=(torch.arange(sequences + 1, dtype=torch.int32) * longest).clamp(max=room.rows),
        row_end=torch.arange(1, room.rows + 1, dtype=torch.int32) if looks_back else None,
        text_time=torch.zeros(sequences),
        attention_scale=None,
        draw=torch.zeros((), dtype=torch.int64),
        num_filled=num_filled,
        max_seqlen=longest,
        counts=Counts(
            open_slots=num_tokens,
            text_sequences=sequences,
            rows=room.rows,
            padded_rows=room.rows,
            text_tokens=num_tokens,
            bag_tokens=room.bag_tokens,
            filled_slots=num_filled,
            sequences=sequences,
            attention_pairs=room.rows * (longest + 1) // 2 if looks_back else room.rows * longest,
            patches=tuple(len(of_kind.patches) for of_kind in pieces),
            moving_elements=tuple(of_kind.velocity.numel() for of_kind in pieces),
        ),
        keys=(),
    )


def _full_pieces(modality: ModalityConfig, room: int, first_row: int, num_patches: int) -> PackedPieces:
    """Pieces of one modality in rows one after the other."""
    patch = torch.arange(num_patches)
    patches = torch.zeros(num_patches, modality.patch_elements)
    return PackedPieces(
        time=torch.zeros(room),
        grid=torch.ones(room, 3, dtype=torch.int64),
        patches=patches,
        velocity=patches if modality.is_target else patches[:, :0],
        sequence=torch.zeros(room, dtype=torch.int64),
        patch_piece=patch * min(room, num_patches) // max(1, num_patches),
        patch_row=first_row + patch,
        patch_weight=torch.ones(num_patches),
    )


def without_values(batch: PackedBatch, mode: FakeTensorMode) -> PackedBatch:
    """The batch on fake tensors."""
    return batch.map(mode.from_tensor)


@contextmanager
def pretend_ranks(world_size: int) -> Iterator[None]:
    """A process group of `world_size` ranks that all are this process; what it sends comes from nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _extrapolate(two: Counter[Any], one: Counter[Any], microbatches: int) -> Counter[Any]:
    """Counts of `microbatches` from those of two and of one; up to two, `two` are the counts."""
    if microbatches <= 2:
        return two
    return Counter({key: count + (microbatches - 2) * (count - one[key]) for key, count in two.items()})
