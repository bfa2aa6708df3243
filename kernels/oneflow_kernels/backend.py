"""Which implementation of a kernel runs."""

from __future__ import annotations

import os

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
