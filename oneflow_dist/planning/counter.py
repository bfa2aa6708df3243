"""What one operation asks of a device: bytes, FLOPs, and the part of the program that asks."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import oneflow_kernels.packed_attention  # noqa: F401 # registers the operations and their FLOPs
from oneflow_dist.planning.events import Call

BLOCKS, REST = "blocks", "outside of blocks"
# Parts that a line of the program's own stack tells, by file and function; the innermost that is known counts.
PLACES = {
    ("oneflow_dist/optim.py", "step"): "AdamW",
    ("oneflow_dist/muon.py", None): "Muon",
    ("oneflow_dist/optim.py", "gradient_norm"): "gradient norm",
    ("oneflow_dist/optim.py", "update"): "moving average",
    ("oneflow_kernels/bag_cross_entropy.py", None): "bag loss",
    ("torch/distributed/fsdp/_fully_shard/", None): "FSDP",
    ("torch/nn/utils/clip_grad.py", None): "gradient norm",
}
WRITES_ONLY = {
    "copy_",
    "zero_",
    "fill_",
    "_foreach_copy_",
    "zeros",
    "full",
    "new_zeros",
    "zeros_like",
    "ones",
    "arange",
}
LOOKS_UP = {"embedding", "index_select"}  # reads no more rows than it writes
PLACES_ROWS = {"index_copy", "index_copy_"}
NAMESPACES = {"aten", "fsdp", "oneflow", "torch_attn"}  # of what runs on a device; others ask about tensors
COSTS_NOTHING = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "resize_"}


def call_of(func: Any, args: Any, kwargs: Any, out: Any, place: str) -> Call | None:
    """What an operation asks for; None of one that does nothing. The stack may know its part better than `place`."""
    num_bytes, packet = bytes_of(func, args, kwargs, out), func._overloadpacket
    if not num_bytes:
        return None
    flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
    return Call(part_on_stack() or place, func._schema.name.split("::")[1], num_bytes, flops)


def part_on_stack() -> str | None:
    """The innermost part of PLACES that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        if part := _part_of(frame.f_code.co_filename, frame.f_code.co_name):
            return part
        frame = frame.f_back  # type: ignore[assignment]
    return None


@functools.cache
def _part_of(file: str, function: str) -> str | None:
    return next((part for (path, own), part in PLACES.items() if path in file and own in (None, function)), None)


def bytes_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes; 0 of views and of what only makes room."""
    name = func._schema.name.split("::")[1]
    aliases = [argument.alias_info for argument in func._schema.arguments]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    if is_view or name in COSTS_NOTHING or func.namespace not in NAMESPACES:
        return 0
    if name == "copy_" and args[0] is args[1]:
        return 0  # onto itself
    if name == "_fused_adamw_":  # weights and moments are read and written; gradients, too, where they are divided
        return 6 * _size(args[0]) + (2 if kwargs.get("grad_scale") is not None else 1) * _size(args[1])
    values = {arg.name: value for arg, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written = [values[arg.name] for arg in func._schema.arguments if _is_written(arg) and arg.name in values]
    outputs = _size(written) or _size(out)
    if name in WRITES_ONLY:
        sources = [value for arg in func._schema.arguments if not _is_written(arg) for value in [values.get(arg.name)]]
        return outputs + (_size(sources) if "copy" in name else 0)
    if name in LOOKS_UP:
        return 2 * _size(out)
    if name in PLACES_ROWS:
        return 2 * _size(args[3]) + (2 * _size(out) if name == "index_copy" else 0)
    is_out = any(arg.name in ("out", "self") and arg.kwarg_only for arg in func._schema.arguments)
    inputs = [value for key, value in values.items() if not (is_out and key == "out")]
    return _size(inputs) + outputs


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _size(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))
