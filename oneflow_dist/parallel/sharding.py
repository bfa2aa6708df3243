"""Cutting the model: compile -> FSDP2. All calls into torch's parallelism are here."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from oneflow_dist.config import TrainConfig
from oneflow_dist.model.oneflow import OneFlow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shard_model(model: OneFlow, mesh: DeviceMesh, train: TrainConfig) -> OneFlow:
    """Shard parameters, gradients and optimizer state over "shard", replicate over "replicate".

    One rank in fp32 keeps the plain model. Gradients are summed over ranks, not averaged: losses are already divided
    by the counts of the whole step.

    Args:
        model: on the meta device; `to_empty` and `initialize` come after.
    """
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
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    register_fsdp_forward_method(model, "bag_logits")
    return model


def sync_gradients(model: nn.Module, is_last: bool) -> None:
    """Reduce gradients over ranks in the last microbatch of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)


def reshard(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward sees what the shards hold now."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
