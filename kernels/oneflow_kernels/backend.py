"""Which implementation of a kernel runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

VARIABLE = "ONEFLOW_KERNELS"
CHOICES = ("auto", "triton", "reference")


def uses_triton(x: Tensor) -> bool:
    """Whether a Triton kernel computes on `x`, or the plain definition.

    On a GPU it is Triton, on a CPU the definition; the environment variable ONEFLOW_KERNELS set to "triton" or to
    "reference" decides for both. On a CPU Triton's interpreter runs the kernel, slowly.

    Raises:
        ValueError: the variable has another value, or asks for Triton on a CPU without TRITON_INTERPRET=1.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f'{VARIABLE}: "{choice}" is none of {", ".join(CHOICES)}')
    if choice == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{VARIABLE}: triton needs a GPU, or TRITON_INTERPRET=1; this tensor is on {x.device}")
    return choice == "triton" or (choice == "auto" and x.is_cuda)


class Launch(NamedTuple):
    """How a kernel is launched: sizes of its tiles by the names of its constexpr arguments, warps, pipeline stages."""

    tiles: dict[str, int]
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """As keyword arguments of a kernel."""
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages}


class Variant(NamedTuple):
    """A kernel as it is shipped, with all that its compilation depends on; see `resources`."""

    name: str  # such as "attention forward, bfloat16, width 128"
    kernel: object  # the triton.jit function
    signature: dict[str, str]  # every argument in order: "*bf16", "i32", "i32:16" (a multiple of 16), "constexpr"
    constants: dict[str, object]  # of the constexpr arguments, tiles among them
    launch: Launch
    targets: tuple[str, ...] = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")  # where it runs


def describe(kernel: Any, launch: Launch, rules: Mapping[str, object], types: Mapping[str, str], dtype: str) -> Variant:
    """The variant of a kernel for one dtype.

    Args:
        rules: the constexpr arguments that are no sizes of tiles.
        types: of the arguments that are neither constexpr nor tensors of that dtype.
        dtype: as Triton writes it, such as "bf16".
    """
    constants = {**launch.tiles, **rules}
    signature = {name: "constexpr" if name in constants else types.get(name, f"*{dtype}") for name in kernel.arg_names}
    features = [name.removeprefix("IS_").removeprefix("HAS_").lower() for name, value in rules.items() if value]
    name = ", ".join([kernel.__name__.replace("_", " "), dtype, *features])
    return Variant(name, kernel, signature, constants, launch)
