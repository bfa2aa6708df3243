"""What a step asks of a device, call by call: kernels, bytes, FLOPs, by the part of the program that asks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BLOCKS, REST = "blocks", "outside of blocks"
# Parts that a line of the program's own stack tells, by file and function; the innermost that is known counts.
PLACES = {
    ("oneflow_dist/optim.py", "step"): "AdamW",
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


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel, or what one call of a library starts."""

    part: str
    operation: str
    num_bytes: int  # read and written
    flops: int


class CallCounter(TorchDispatchMode):
    """Inside `with CallCounter(blocks) as counter:` every call that does something is noted; on fakes, too."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.calls: list[Call] = []
        self._blocks = list(blocks)
        self._depth = 0
        self._handles: list[Any] = []

    def __enter__(self) -> CallCounter:
        for block in self._blocks:
            self._handles += [
                block.register_forward_pre_hook(self._begin),
                block.register_forward_hook(self._end),
                block.register_full_backward_pre_hook(self._begin),
                block.register_full_backward_hook(self._end),
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._depth += 1

    def _end(self, *_: Any) -> None:
        self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first its own work, which comes back here with plain tensors
        out = func(*args, **(kwargs or {}))
        num_bytes = bytes_of(func, args, kwargs or {}, out)
        if num_bytes:
            packet, name = func._overloadpacket, func._schema.name.split("::")[1]
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
            self.calls.append(Call(self._part(), name, num_bytes, flops))
        return out

    def _part(self) -> str:
        frame = sys._getframe(2)
        while frame is not None:
            file, function = frame.f_code.co_filename, frame.f_code.co_name
            for (path, wanted), part in PLACES.items():
                if path in file and wanted in (None, function):
                    return part
            frame = frame.f_back  # type: ignore[assignment]
        return BLOCKS if self._depth else REST


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


def by_part(calls: list[Call]) -> dict[str, Counter[str]]:
    """Calls, bytes and FLOPs of each part."""
    parts: dict[str, Counter[str]] = {}
    for call in calls:
        part = parts.setdefault(call.part, Counter())
        part.update(calls=1, bytes=call.num_bytes, flops=call.flops)
    return parts
