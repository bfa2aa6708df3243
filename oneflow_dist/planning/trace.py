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
from oneflow_dist.parallel.dealing import deal_pack
from oneflow_dist.parallel.mesh import context_axis, data_rank, group_names, make_mesh, mesh_shape, tensor_axis
from oneflow_dist.parallel.sharding import shard_model
from oneflow_dist.planning.cluster import MeshShape
from oneflow_dist.planning.events import UPDATE, Call, Collective, Send, Stretch, joined, without_order
from oneflow_dist.planning.recorder import Recorder, highest
from oneflow_dist.stored_tensors import named_leaves
from oneflow_dist.training import agree, compute_gradients, update_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one step of one rank needs."""

    mesh: MeshShape
    rows_per_pack: int
    num_parameters: int  # of the whole model
    checkpoint_bytes: int  # of all ranks: weights, average and the optimizer's state
    held: dict[str, int]  # bytes of parameters, optimizer, average: always there
    peaks: dict[str, dict[str, int]]  # bytes by kind when memory is fullest, of each phase of a step
    stretches: tuple[Stretch, ...]  # microbatches, then "update"; `group` of a collective is a mesh axis, or "all"

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by kind when memory is fullest."""
        return highest(self.peaks)

    @property
    def microbatches(self) -> int:
        return sum(stretch.times for stretch in self.stretches if stretch.name != UPDATE)

    @property
    def ranks_of_pack(self) -> int:
        return self.mesh[2] * self.mesh[3]

    @property
    def rows(self) -> float:
        """Of a step, this rank's share."""
        return self.microbatches * self.rows_per_pack / self.ranks_of_pack

    @property
    def collectives(self) -> Counter[Collective]:
        """How often each is sent in a step."""
        return self._count()[1]

    @property
    def flops(self) -> int:
        """Computed, with what is computed again."""
        return sum(call.flops * count for call, count in self._count()[0].items())

    def _count(self) -> tuple[Counter[Call], Counter[Collective]]:
        calls: Counter[Call] = Counter()
        sent: Counter[Collective] = Counter()
        for stretch in self.stretches:
            own_calls, own_sent = stretch.count()
            calls.update({key: stretch.times * count for key, count in own_calls.items()})
            sent.update({key: stretch.times * count for key, count in own_sent.items()})
        return calls, sent


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
        microbatches = packs_of_rank(config, data_rank(mesh, config.parallel.context)[1])
        batch = full_pack(config)
        with fake_model(config, mesh) as (model, num_parameters, mode):
            optimizer = make_optimizer(model, config)
            remembered = sum(value.numel() for _, value in named_leaves(optimizer.tensors))
            with unset_fake_temporarily():  # what a rank gets of a pack depends on its values
                batch = deal_pack(batch, model)
            batches = [without_values(batch, mode)] * min(microbatches, 3)
            recorder, held = record_step(model, optimizer, batches, config)
        return Trace(
            mesh=mesh_shape(config.parallel, world_size),
            rows_per_pack=config.data.rows_per_pack,
            num_parameters=num_parameters,
            checkpoint_bytes=4 * (num_parameters + num_trained(model) + remembered),
            held=held,
            peaks=recorder.peaks(),
            stretches=stretches_of(recorder, microbatches, group_names(mesh, model.context)),
        )


def stretches_of(recorder: Recorder, microbatches: int, names: dict[str, str]) -> tuple[Stretch, ...]:
    """A step of so many microbatches from one of up to three: those between the first and the last are alike.

    Args:
        names: axes by process groups.
    """

    def on_axis(event: Any) -> Any:
        if not isinstance(event, Send):
            return event
        collective = dataclasses.replace(event.collective, group=names[event.collective.group])
        return dataclasses.replace(event, collective=collective)

    events, ends = [on_axis(event) for event in recorder.events], recorder.ends
    assert len(ends) == min(microbatches, 3), f"{len(ends)} backward passes of {microbatches} microbatches"
    passes = [joined(events[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    found = [Stretch("microbatch", 1, each) for each in passes]
    if microbatches > 2:
        found[1] = dataclasses.replace(found[1], times=microbatches - 2)
    return (*found, Stretch(UPDATE, 1, without_order(joined(events[ends[-1] :]))))


def eager(config: Config) -> Config:
    """The config without what sees no fakes: compilation, what overlaps by it, and frozen encoders."""
    modalities = {
        name: modality if modality.is_target else dataclasses.replace(modality, understanding="features")
        for name, modality in config.modality.items()
    }
    train = dataclasses.replace(config.train, compile=False)
    parallel = dataclasses.replace(config.parallel, async_tensor=False)
    return dataclasses.replace(config, train=train, parallel=parallel, modality=modalities)


@contextmanager
def fake_model(config: Config, mesh: DeviceMesh) -> Iterator[tuple[OneFlow, int, FakeTensorMode]]:
    """Inside, the sharded model on fake tensors, the parameters of all of it, and the mode that makes more of them."""
    with torch.device("meta"):
        model = OneFlow(config, tensor_axis(mesh), context_axis(mesh, config.parallel.context))
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
    with Recorder(model.blocks) as recorder:
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
