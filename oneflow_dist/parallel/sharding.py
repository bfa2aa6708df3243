"""Cutting the model: tensor -> activation checkpointing -> compile -> FSDP2."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from oneflow_dist.config import Config, group_of
from oneflow_dist.model.axis import local_part
from oneflow_dist.model.linear import Linear
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.activations import checkpoint_block
from oneflow_kernels.float8 import check_device, check_sizes, float8_linear

# Of gathered weights and of what passes between layers; "float8" rounds further, inside the products of the trunk.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float8": torch.bfloat16}

# Weights that the tensor axis cuts, by the end of their names: outputs of a product, tokens, inputs of a product.
CUT_OUTPUTS = ("attention.qkv.weight", "mlp.gate_up.weight", "attention.qkv.lora.up", "mlp.gate_up.lora.up")
CUT_TOKENS = ("embed.weight", "unembed.weight")
CUT_INPUTS = ("attention.out.weight", "mlp.down.weight", "attention.out.lora.down", "mlp.down.lora.down")


def shard_model(model: OneFlow, mesh: DeviceMesh, config: Config) -> OneFlow:
    """Cut weights over "tensor"; shard parameters, gradients and optimizer state over "shard", replicate the rest.

    Ranks of a context group are ranks of "shard" that see parts of one pack.

    One rank in fp32 keeps the plain model. Gradients are summed over ranks, not averaged: losses are already divided
    by the counts of the whole step.

    Args:
        model: on the meta device; `to_empty` (on the CPU if optim.offload: shards and all that is kept for them live in
            host memory then, and blocks are copied to the device in use) and `initialize` come after.

    Raises:
        ValueError: float8 products do not fit the device or the model, or parallel.async_tensor the device.
    """
    train, offload = config.train, config.optim.offload
    freeze(model, config)
    if mesh["tensor"].size() > 1:
        cut_weights(model, mesh["tensor"])
    if config.parallel.async_tensor:
        overlap_tensor(mesh["tensor"])
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
    data_mesh = mesh["replicate", "shard"] if mesh.size(0) > 1 else mesh["shard"]
    host = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    model.is_whole = mesh["shard"].size() == 1 and not offload
    options: dict[str, Any] = {"mesh": data_mesh, "mp_policy": policy, "offload_policy": host}
    for module in (*model.blocks, model):
        fully_shard(module, **options, reshard_after_forward=not model.is_whole)
    for module in fsdp_modules(model):
        if data_mesh.size() == 1:
            module.set_custom_reduce_scatter(_InPlace())
        else:
            module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    for method in ("bag_logits", "draw_tokens"):
        register_fsdp_forward_method(model, method)
    return model


def freeze(model: nn.Module, config: Config) -> None:
    """Parameters of frozen groups get no gradient, in addition to the weights beside which a Lora learns.

    Raises:
        ValueError: a group names no parameter, or none is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for group in config.optim.group:
        for pattern in group.names:
            if not fnmatch.filter(names, pattern):
                near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                raise ValueError(f"optim.group: {pattern!r} names no parameter; one is called {near[0]}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not group_of(name, config.optim).frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("optim.group: all parameters are frozen; leave some to train")


def cut_weights(model: nn.Module, tensor_mesh: DeviceMesh) -> None:
    """Make every parameter a DTensor on the tensor axis: cut, or whole on each of its ranks."""
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = _placement(f"{prefix}.{name}")
            cut = distribute_tensor(parameter, tensor_mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(cut, requires_grad=parameter.requires_grad))


def _placement(name: str) -> Shard | Replicate:
    if name in CUT_TOKENS or name.endswith(CUT_OUTPUTS):
        return Shard(0)
    return Shard(1) if name.endswith(CUT_INPUTS) else Replicate()


def overlap_tensor(tensor_mesh: DeviceMesh) -> None:
    """Let the compiler cut products on the tensor axis into pieces that are sent while the next is computed.

    Raises:
        ValueError: the device is no GPU.
    """
    if tensor_mesh.device_type != "cuda":
        raise ValueError(
            f"parallel.async_tensor: needs CUDA, and the device is {tensor_mesh.device_type}; "
            "set parallel.async_tensor = false"
        )
    from torch._inductor import config as inductor
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    inductor._micro_pipeline_tp = True
    enable_symm_mem_for_group(tensor_mesh.get_group().group_name)


def use_float8(model: OneFlow, device_type: str) -> None:
    """Take the products of the blocks' linear layers in float8; embeddings, adapters and heads stay as they are.

    Raises:
        ValueError: the device has no float8, or a layer's sizes do not suit it.
    """
    check_device(device_type)
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear) and module.bias is None:
            check_sizes(name, local_part(module.weight).shape)
            module.product = float8_linear


def sync_gradients(model: OneFlow, is_last: bool) -> None:
    """Reduce gradients over replicas in the last microbatch of a step only.

    Over shards they are reduced in every one, so that no rank holds more gradients than parameters. A rank that has
    whole parameters keeps them for all microbatches, and sums their gradients where they are, in float32.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(is_last)
        if model.is_whole:
            model.set_requires_gradient_sync(is_last)
            model.set_reshard_after_backward(is_last)


class _InPlace(ReduceScatter):
    """The sum over one rank: what comes out is what goes in, not a copy of it."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Called for the input, then for the output, which is of the same size and gets the same memory."""
        buffer = self._buffer if self._buffer is not None else torch.empty(size, dtype=dtype, device=device)
        self._buffer = buffer if self._buffer is None else None
        return buffer

    def __call__(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("there is no other rank to exchange gradients with")


def reshard(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward sees what the shards hold now."""
    for module in fsdp_modules(model):
        module.reshard()


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """The parts of a model whose parameters are gathered together; none of a model that is not sharded."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
