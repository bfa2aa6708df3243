"""Activation checkpointing: which results of a block are kept for its backward pass, and which are computed again."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # defines torch.ops.torch_attn
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import oneflow_kernels.packed_attention  # noqa: F401 # defines torch.ops.oneflow

Mode = Literal["none", "selective", "full"]

_aten = torch.ops.aten
PRODUCTS = (_aten.mm.default, _aten._scaled_mm.default)  # of linear layers without bias; the second in float8
KEPT = (
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.oneflow.flash_attention.default,
    torch.ops.oneflow.packed_attention.default,
    torch.ops.oneflow.interval_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,  # of the tensor axis; FSDP's are outside the block
    torch.ops._c10d_functional.all_to_all_single.default,  # of the context axis
    torch.ops._c10d_functional.all_reduce.default,
)


def checkpoint_block(block: nn.Module, mode: Mode) -> None:
    """Let a block's backward pass compute again what its forward pass did not keep; names of parameters stay.

    "full" keeps the block's input alone. "selective" keeps attention, what crossed the network, and of the four
    products of linear layers, `qkv`, `out`, `gate_up` and `down`, the first two: `gate_up`, whose results are more than
    all others together, is computed again (54 percent of the forward products of Llama 8B), and `down` never has to be.
    """
    if mode == "none":
        return
    forward = block.forward
    options: dict[str, Any] = {"context_fn": _selective} if mode == "selective" else {}

    def checkpointed(*args: Any) -> Tensor:  # a function of ours, as torch.compile looks into no other
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    block.forward = checkpointed


def _selective() -> tuple[Any, Any]:
    """The contexts of one forward pass and of its repetition, which count products alike."""
    num_products = {False: 0, True: 0}

    def policy(context: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        is_kept = op in KEPT
        if op in PRODUCTS:
            num_products[context.is_recompute] += 1
            is_kept = num_products[context.is_recompute] <= 2
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
