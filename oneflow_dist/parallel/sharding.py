"""Cutting the model: tensor -> compile -> FSDP2. All calls into torch's parallelism are here."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.model.tensor_axis import TensorAxis

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float8": torch.bfloat16}

# Weights that the tensor axis cuts, by the end of their names: outputs of a product, tokens, inputs of a product.
CUT_OUTPUTS = ("query.weight", "key.weight", "value.weight", "mlp.gate.weight", "mlp.up.weight")
CUT_TOKENS = ("embed.weight", "unembed.weight")
CUT_INPUTS = ("attention.out.weight", "mlp.down.weight")


def shard_model(model: OneFlow, mesh: DeviceMesh, config: Config) -> OneFlow:
    """Cut weights over "tensor"; shard parameters, gradients and optimizer state over "shard", replicate the rest.

    One rank in fp32 keeps the plain model. Gradients are summed over ranks, not averaged: losses are already divided
    by the counts of the whole step.

    Args:
        model: on the meta device; `to_empty` and `initialize` come after.
    """
    train = config.train
    if mesh["tensor"].size() > 1:
        cut_weights(model, mesh["tensor"])
    if train.compile:
        for block in model.blocks:
            block.compile(fullgraph=True)
    if mesh.size() == 1 and train.precision == "fp32":
        return model  # nothing to shard, nothing to cast
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[train.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # Outputs of the model are views; the warning is about writing into them, which nothing does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    data_mesh = mesh["replicate", "shard"] if mesh.size(0) > 1 else mesh["shard"]
    for block in model.blocks:
        fully_shard(block, mesh=data_mesh, mp_policy=policy)
    fully_shard(model, mesh=data_mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    register_fsdp_forward_method(model, "bag_logits")
    return model


def cut_weights(model: nn.Module, tensor_mesh: DeviceMesh) -> None:
    """Make every parameter a DTensor on the tensor axis: cut, or whole on each of its ranks."""
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = _placement(f"{prefix}.{name}")
            cut = distribute_tensor(parameter, tensor_mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(cut))


def _placement(name: str) -> Shard | Replicate:
    if name in CUT_TOKENS or name.endswith(CUT_OUTPUTS):
        return Shard(0)
    return Shard(1) if name.endswith(CUT_INPUTS) else Replicate()


def share_batch(batch: PackedBatch, axis: TensorAxis) -> PackedBatch:
    """The batch as a rank of a tensor group answers for it: all of it, but the others' losses weigh nothing.

    So every loss, and every count, enters the sums over ranks once.
    """
    if axis.size == 1:
        return batch

    def share(weight: Tensor) -> Tensor:
        shared = torch.zeros_like(weight)
        own = axis.own(len(weight))
        shared[own] = weight[own]
        return shared

    return dataclasses.replace(
        batch,
        slot_weight=share(batch.slot_weight),
        bag_weight=share(batch.bag_weight),
        patch_weight=share(batch.patch_weight),
        counts=batch.counts if axis.rank == 0 else Counts.zeros(),
    )


def sync_gradients(model: nn.Module, is_last: bool) -> None:
    """Reduce gradients over replicas in the last microbatch of a step only.

    Over shards they are reduced in every one, so that no rank holds more gradients than parameters.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(is_last)


def reshard(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward sees what the shards hold now."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
