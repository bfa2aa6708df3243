"""FlashAttention 4 and 3 inside each sequence of a packed batch, where one of them is installed."""

# Shapes: T rows, S1 sequences + 1, h query heads, g key and value heads, d head width.

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

LOG = logging.getLogger(__name__)
WIDTHS = (64, 96, 128)  # that both are built and tested for, forward and backward


class Interface(NamedTuple):
    """Where the functions of a FlashAttention are, and how they call what differs."""

    package: str  # of `pip list`
    version: str  # what its version begins with
    majors: tuple[int, ...]  # of compute capabilities
    modules: tuple[str, str]  # with the public function of the forward pass; with that of the backward pass
    backward: str
    returns_sums: str  # argument of the forward pass
    logsumexp: str  # arguments of the backward pass
    is_causal: str


INTERFACES = {
    "FlashAttention 4": Interface(
        *("flash-attn-4", "4.0.", (9, 10), ("flash_attn.cute", "flash_attn.cute.interface"), "_flash_attn_bwd"),
        *("return_lse", "lse", "causal"),
    ),
    "FlashAttention 3": Interface(
        *("flash_attn_3", "3.", (9,), ("flash_attn_interface", "flash_attn_interface"), "_flash_attn_backward"),
        *("return_attn_probs", "softmax_lse", "is_causal"),
    ),
}
PACKED = {"q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}  # arguments of all functions
BACKWARD = {"out", "dout", "dq", "dk", "dv", "softmax_scale", "deterministic"}


def choose(major: int) -> str:
    """The first interface that is installed and known, for GPUs of this compute capability; "" if there is none."""
    return next((name for name, each in INTERFACES.items() if major in each.majors and functions_of(name)), "")


@cache
def functions_of(name: str) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The forward and the backward pass of an interface; if it is there and not as known, the log says so once."""
    interface = INTERFACES[name]
    try:
        version = importlib.metadata.version(interface.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        public, private = map(importlib.import_module, interface.modules)
        forward, backward = public.flash_attn_varlen_func, getattr(private, interface.backward)
    except (ImportError, AttributeError, OSError) as error:  # the last where a library of CUDA is missing
        problem = str(error)
    else:
        problem = _misfit(forward, PACKED | {"causal", interface.returns_sums})
        problem = problem or _misfit(backward, PACKED | BACKWARD | {interface.logsumexp, interface.is_causal})
        if not version.startswith(interface.version):
            problem = f"known are versions {interface.version}*"
        if not problem:
            return forward, backward
    LOG.warning("%s: version %s is installed but not used: %s; taking the next best", name, version, problem)
    return None


def _misfit(function: Callable[..., Any], wanted: set[str]) -> str:
    """What is wrong with a signature, which must have these arguments and ask for no other; "" if nothing is."""
    function = getattr(function, "_init_fn", function)  # an operator of torch.library keeps the function there
    parameters = inspect.signature(function).parameters
    asked = {name for name, each in parameters.items() if each.default is each.empty}
    if missing := sorted(wanted - set(parameters)):
        return f"{function.__name__} has no {', '.join(missing)}"
    return f"{function.__name__} asks for {', '.join(sorted(asked - wanted))}" if asked - wanted else ""


def flash_attention(
    query: Float[Tensor, "T h d"],
    key: Float[Tensor, "T g d"],
    value: Float[Tensor, "T g d"],
    cu_seqlens: Int32[Tensor, "S1"],
    max_seqlen: int,
    is_causal: bool,
    interface: str,
) -> Float[Tensor, "T h d"]:
    """`packed_attention` by an interface that `choose` has named.

    Numerics: sums in float32; gradients of the query are added in any order unless torch is told to be deterministic.
    Source: arXiv:2407.08608 (3).
    """
    return torch.ops.oneflow.flash_attention(query, key, value, cu_seqlens, max_seqlen, is_causal, interface)[0]


INPUTS = "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_seqlen, bool is_causal, str interface"


def _arguments(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> dict[str, Any]:
    """Those that all functions have."""
    packed = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    return {"q": query, "k": key, "v": value, **packed, "max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}


@torch.library.custom_op("oneflow::flash_attention", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool, interface: str
) -> tuple[Tensor, Tensor]:
    functions = functions_of(interface)
    assert functions is not None, f"{interface} was chosen and is not installed"
    arguments = _arguments(query, key, value, cu_seqlens, max_seqlen)
    out, logsumexp = functions[0](**arguments, causal=is_causal, **{INTERFACES[interface].returns_sums: True})
    return out, logsumexp


@_forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows, heads, _width = query.shape
    return query.new_empty(query.shape), query.new_empty(heads, rows, dtype=torch.float32)


@torch.library.custom_op(
    "oneflow::flash_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {INPUTS}, Tensor out, Tensor logsumexp) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool,
    interface: str, out: Tensor, logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    functions = functions_of(interface)
    assert functions is not None, f"{interface} was chosen and is not installed"
    d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
    known = INTERFACES[interface]
    functions[1](
        **_arguments(query, key, value, cu_seqlens, max_seqlen),
        **{known.logsumexp: logsumexp, known.is_causal: is_causal},
        out=out,
        dout=grad,
        dq=d_query,
        dk=d_key,
        dv=d_value,
        softmax_scale=query.shape[2] ** -0.5,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return d_query, d_key, d_value


@_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_seqlen, ctx.is_causal, ctx.interface = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Nothing is learned from the log-sum-exps."""
    *tensors, out, logsumexp = ctx.saved_tensors
    grad = torch.zeros_like(out) if grad is None else grad.contiguous()
    found = _backward(grad, *tensors, ctx.max_seqlen, ctx.is_causal, ctx.interface, out, logsumexp)
    return *found, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
