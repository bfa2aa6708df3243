"""Cutting the model: activation checkpointing -> compile -> FSDP2. All calls into torch's parallelism are here."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from oneflow_dist.config import TrainConfig
from oneflow_dist.model.linear import Linear
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.activations import checkpoint_block
from oneflow_kernels.float8 import check_device, check_sizes, float8_linear

# Of gathered weights and of what passes between layers; "float8" rounds further, inside the products of the trunk.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float8": torch.bfloat16}


def shard_model(model: OneFlow, mesh: DeviceMesh, train: TrainConfig, offload: bool = False) -> OneFlow:
    """Shard parameters, gradients and optimizer state over "shard", replicate over "replicate".

    One rank in fp32 keeps the plain model. Gradients are summed over ranks, not averaged: losses are already divided
    by the counts of the whole step.

    Args:
        model: on the meta device; `to_empty` (on the CPU if `offload`) and `initialize` come after.
        offload: shards live in host memory, where gradients come to them; blocks are copied to the device in use.

    Raises:
        ValueError: float8 products do not fit the device or the model.
    """
    if train.precision == "float8":
        use_float8(model, mesh.device_type)
    for block in model.blocks:
        checkpoint_block(block, train.activation_checkpointing)
        if train.compile:
            block.compile(fullgraph=True)
    if mesh.size() == 1 and train.precision == "fp32" and not offload:
        return model  # nothing to shard, nothing to cast, nothing to move
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[train.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # Outputs of the model are views; the warning is about writing into them, which nothing does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    host = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=host)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    register_fsdp_forward_method(model, "bag_logits")
    return model


def use_float8(model: OneFlow, device_type: str) -> None:
    """Take the products of the blocks' linear layers in float8; embeddings, adapters and heads stay as they are.

    Raises:
        ValueError: the device has no float8, or a layer's sizes do not suit it.
    """
    check_device(device_type)
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear):
            check_sizes(name, module.weight.shape)
            module.product = float8_linear


def sync_gradients(model: nn.Module, is_last: bool) -> None:
    """Reduce gradients over ranks in the last microbatch of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)


def reshard(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward sees what the shards hold now."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
