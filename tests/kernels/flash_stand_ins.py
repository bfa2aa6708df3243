"""Packages with the signatures of FlashAttention 4 (4.0.0b36) and 3 (3.0.0), which compute by the definition."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from oneflow_kernels import flash_attention, reference

Function = Callable[..., Any]


def forward_4(  # flash_attn.cute.flash_attn_varlen_func
    q: Tensor, k: Tensor, v: Tensor, qv: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None,
    max_seqlen_q: Any = None, max_seqlen_k: Any = None, min_seqlen_k: Any = None, seqused_q: Any = None,
    seqused_k: Any = None, gather_kv_indices: Any = None, page_table: Any = None, softmax_scale: Any = None,
    causal: bool = False, window_size: Any = (None, None), learnable_sink: Any = None, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False, score_mod: Any = None,
    score_mod_bwd: Any = None, mask_mod: Any = None, block_sparse_tensors: Any = None, aux_tensors: Any = None,
    aux_scalars: Any = None, return_lse: bool = False, scheduler_metadata: Any = None, seqlen_k_per_split: Any = None,
    disable_scheduler_metadata: bool = False, gather_bwd_recompute_p: bool = False, gather_bwd_token_chunk: Any = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    out, sums = forward(q, k, v, cu_seqlens_q, causal)
    return out, sums if return_lse else None


def backward_4(  # flash_attn.cute.interface._flash_attn_bwd
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, softmax_scale: Any = None,
    causal: bool = False, softcap: float = 0.0, window_size_left: Any = None, window_size_right: Any = None,
    m_block_size: int = 64, n_block_size: int = 128, num_threads: int = 256, pack_gqa: bool = False,
    num_stages_Q: int = 2, num_stages_dO: int = 2, SdP_swapAB: bool = False, dKV_swapAB: bool = False,
    dQ_swapAB: bool = False, AtomLayoutMSdP: int = 2, AtomLayoutNdKV: int = 2, AtomLayoutMdQ: int = 2,
    V_in_regs: bool = False, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None, seqused_q: Any = None,
    seqused_k: Any = None, max_seqlen_q: Any = None, max_seqlen_k: Any = None, deterministic: bool = False,
    dq: Any = None, dk: Any = None, dv: Any = None, score_mod: Any = None, score_mod_bwd: Any = None,
    mask_mod: Any = None, aux_tensors: Any = None, aux_scalars: Any = None, block_sparse_tensors: Any = None,
    dlse: Any = None, learnable_sink: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return backward(dout, q, k, v, cu_seqlens_q, causal, softmax_scale, lse, (dq, dk, dv))


def forward_3(  # flash_attn_interface.flash_attn_varlen_func
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: Any = None, seqused_k: Any = None, softmax_scale: Any = None, causal: bool = False, qv: Any = None,
    q_descale: Any = None, k_descale: Any = None, v_descale: Any = None, window_size: Any = (-1, -1),
    attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1, pack_gqa: Any = None,
    deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    out, sums = forward(q, k, v, cu_seqlens_q, causal)
    return (out, sums) if return_attn_probs else out


def backward_3(  # flash_attn_interface._flash_attn_backward, an operator of torch.library
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None, sequed_q: Any = None, sequed_k: Any = None, max_seqlen_q: Any = None,
    max_seqlen_k: Any = None, dq: Any = None, dk: Any = None, dv: Any = None, softmax_scale: Any = None,
    is_causal: bool = False, window_size_left: int = -1, window_size_right: int = -1, softcap: float = 0.0,
    deterministic: bool = False, sm_margin: int = 0,
) -> Tensor:  # fmt: skip
    backward(dout, q, k, v, cu_seqlens_q, is_causal, softmax_scale, softmax_lse, (dq, dk, dv))
    return torch.zeros_like(softmax_lse)


def forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """The sums are numbers that the backward pass knows again."""
    assert not (q.requires_grad and torch.is_grad_enabled())
    return reference.packed_attention(q, k, v, cu_seqlens, is_causal), torch.full((q.shape[1], len(q)), 7.0)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, is_causal: bool, scale: float, sums: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Into memory that the caller has made."""
    assert scale == pytest.approx(q.shape[2] ** -0.5)
    assert sums.eq(7.0).all()
    found = reference.packed_attention_backward(dout, q, k, v, cu_seqlens, is_causal)
    for place, gradient in zip(places, found, strict=True):
        place.copy_(gradient)
    return places


def install(
    name: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
    version: str = "",
    functions: tuple[Function, Function] | None = None,
) -> None:
    """As pip would, from here on and for one test."""
    known = flash_attention.INTERFACES[name]
    usual = {
        "FlashAttention 4": ("4.0.0b36", (forward_4, backward_4)),
        "FlashAttention 3": ("3.0.0", (forward_3, backward_3)),
    }
    version, (forward, backward) = version or usual[name][0], functions or usual[name][1]
    about = folder / f"{known.package.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {known.package}\nVersion: {version}\n")
    patch.syspath_prepend(folder)
    for place, function, called in (
        (known.modules[0], forward, "flash_attn_varlen_func"),
        (known.modules[1], backward, known.backward),
    ):
        module = sys.modules.get(place) or ModuleType(place)
        setattr(module, called, function)
        patch.setitem(sys.modules, place, module)
    flash_attention.functions_of.cache_clear()
