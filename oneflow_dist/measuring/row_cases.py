"""What stands between the products of a block: ours against torch.compile of the definition, and that definition."""

# Shapes: T rows, D width, m MLP width, h query heads, g key and value heads, d head width, I images.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from oneflow_dist.measuring.contest import Call, Case, Contender, Inputs, Outputs
from oneflow_kernels import reference_fused
from oneflow_kernels.norm import gated_add, modulated_rms_norm
from oneflow_kernels.rotary import rotary
from oneflow_kernels.swiglu import swiglu

EPS = 1e-5
IMAGES = 32  # of as many rows each as there are rows of text between them
Function = Callable[..., Any]  # of tensors; a tensor or a tuple of them


def row_cases(device: torch.device, scale: int) -> Iterator[Case]:
    """All of them, forward and backward at the shapes of 1B and 8B; on a CPU `scale` times smaller."""
    rows = 16384 // scale
    for name, width, mlp_width, head_width in (("1B", 2048, 8192, 64), ("8B", 4096, 14336, 128)):
        make = _Maker(device, rows, width // scale, mlp_width // scale, head_width)
        trunk, hidden, heads = rows * make.width, rows * make.mlp_width, rows * 40 * head_width
        # Elements read and written at least: forward, then backward.
        yield _case(
            f"norm and modulation, {name}", make.norm, modulated_norm, modulated_norm_definition, 5 * trunk, "1 4"
        )
        yield _case(f"gate and residual, {name}", make.gate, gated_add, reference_fused.gated_add, 5 * trunk, "1 3")
        yield _case(f"rotary, {name}", make.rotary, rotary, reference_fused.rotary, 4 * heads, "2 2")
        yield _case(f"SwiGLU, {name}", make.swiglu, swiglu, reference_fused.swiglu, 8 * hidden, "1 2")


def modulated_norm(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, row_image: Tensor) -> Tensor:
    """Ours."""
    return modulated_rms_norm(x, weight, shift, scale, row_image, EPS)


def modulated_norm_definition(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, row_image: Tensor) -> Tensor:
    """The definition."""
    return reference_fused.modulated_rms_norm(x, weight, shift, scale, row_image, EPS)


class _Maker:
    """Inputs; those that are not integers or angles get gradients."""

    def __init__(self, device: torch.device, rows: int, width: int, mlp_width: int, head_width: int):
        self.device, self.rows, self.width, self.mlp_width = device, rows, width, mlp_width
        self.head_width = head_width

    def normal(self, seed: int, *sizes: tuple[int, ...]) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        made = [torch.randn(size, device=self.device, generator=generator).bfloat16() for size in sizes]
        return [x.requires_grad_() for x in made]

    def row_image(self) -> Tensor:
        """Images and text in turn, half of the rows each."""
        block = torch.arange(self.rows, device=self.device) * 2 * IMAGES // self.rows
        return torch.where(block % 2 == 1, block // 2, IMAGES)

    def norm(self, seed: int) -> Inputs:
        lines = (IMAGES, self.width)
        return *self.normal(seed, (self.rows, self.width), (self.width,), lines, lines), self.row_image()

    def gate(self, seed: int) -> Inputs:
        size = (self.rows, self.width)
        return *self.normal(seed, size, size, (IMAGES, self.width)), self.row_image()

    def rotary(self, seed: int) -> Inputs:
        h, g, d = 32, 8, self.head_width
        angle = torch.arange(self.rows, device=self.device)[:, None, None] / torch.arange(1, d // 2 + 1).to(self.device)
        return *self.normal(seed, (self.rows, h, d), (self.rows, g, d)), angle.cos(), angle.sin()

    def swiglu(self, seed: int) -> Inputs:
        size = (self.rows, self.mlp_width)
        return tuple(self.normal(seed, size, size))


def _case(
    name: str, make: Callable[[int], Inputs], ours: Function, definition: Function, elements: int, counts: str
) -> Case:
    """A case of bfloat16 elements; `counts` of its outputs and gradients."""
    outputs, gradients = (int(count) for count in counts.split())
    return Case(
        name=f"{name}, forward and backward",
        make_inputs=make,
        contenders=(
            Contender(name="ours", prepare=lambda inputs: _both(ours, inputs), is_ours=True),
            Contender(name="compiled", prepare=lambda inputs: _both(torch.compile(definition, dynamic=False), inputs)),
            Contender(name="eager", prepare=lambda inputs: _both(definition, inputs)),
        ),
        num_bytes=2 * elements,
        outputs=(*(f"out {i}" for i in range(outputs)), *(f"gradient {i}" for i in range(gradients))),
        parts=list,
        truth=lambda inputs: list(_both(definition, _in_float64(inputs))()),
    )


def _both(function: Function, inputs: Inputs) -> Call:
    """Outputs, and gradients of what has some, for gradients of the outputs that do not depend on who computes."""
    learned = [x for x in inputs if x.requires_grad]
    with torch.no_grad():
        given = [_slope(output) for output in _as_tuple(function(*inputs))]

    def call() -> Outputs:
        outputs = _as_tuple(function(*inputs))
        return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, learned, given)]

    return call


def _as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _slope(output: Tensor) -> Tensor:
    values = torch.linspace(-1.0, 1.0, output.numel(), device=output.device).bfloat16()
    return values.view(output.shape).to(output.dtype)


def _in_float64(inputs: Inputs) -> Inputs:
    return tuple(x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs)
