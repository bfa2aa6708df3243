"""RMS norm and residual sums of rows, of which those of images are shifted, scaled and gated."""

# Shapes: T rows, D width, I images, P chunks of consecutive rows.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from oneflow_kernels import reference_fused
from oneflow_kernels.backend import uses_triton

MAX_WIDTH = 8192  # of a row that one program holds
MIN_CHUNK_ROWS = 16  # fewer, and the parts of sums are as much to write as the rows
WARPS_PER_PROCESSOR = 16  # with 128 registers a thread
GATE_WARPS_PER_PROCESSOR = 32


def modulated_rms_norm(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, "D"],
    shift: Float[Tensor, "I D"] | None,
    scale: Float[Tensor, "I D"] | None,
    row_image: Int64[Tensor, "T"] | None,
    eps: float,
) -> Float[Tensor, "T D"]:
    """RMS norm of each row, and the modulation of AdaLN where the row is of an image.

        h[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
        out[t] = h[t] * scale[i] + shift[i]                  i = row_image[t]; h[t] if i = I

    Args:
        weight: as shift and scale in the dtype of x.
        shift: with scale and row_image, or all three None: then no row is modulated.
        row_image: in [0, I]; I where a row is of no image. Rows of one image are consecutive, images ascend; an image
            may have no rows.

    Returns:
        Differentiable in x, weight, shift and scale.

    Raises:
        ValueError: dtypes differ, or one of shift, scale and row_image is missing.

    Numerics: in float32, rounded once. Sums over rows in float32, of parts in a fixed order: deterministic.
    float64, and rows wider than 8192, are computed by the definition.
    Source: arXiv:1910.07467, arXiv:2212.09748.
    """
    _check_dtypes(x, weight=weight, shift=shift, scale=scale)
    if len({part is None for part in (shift, scale, row_image)}) > 1:
        raise ValueError("modulated_rms_norm: shift, scale and row_image go together; give all three or none")
    if _is_plain(x):
        return reference_fused.modulated_rms_norm(x, weight, shift, scale, row_image, eps)
    return _norm(x, weight, shift, scale, row_image, eps)


def gated_add(
    x: Float[Tensor, "T D"],
    y: Float[Tensor, "T D"],
    gate: Float[Tensor, "I D"],
    row_image: Int64[Tensor, "T"],
) -> Float[Tensor, "T D"]:
    """The residual sum of a branch, gated where the row is of an image.

        out[t] = x[t] + gate[i] * y[t]                       i = row_image[t]; x[t] + y[t] if i = I

    Args:
        gate: as y in the dtype of x.
        row_image: as for `modulated_rms_norm`.

    Returns:
        Differentiable in x, y and gate.

    Raises:
        ValueError: dtypes differ.

    Numerics: as for `modulated_rms_norm`.
    Source: arXiv:2212.09748.
    """
    _check_dtypes(x, y=y, gate=gate)
    if _is_plain(x):
        return reference_fused.gated_add(x, y, gate, row_image)
    return _gated_add(x, y, gate, row_image)


def _check_dtypes(x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.dtype != x.dtype:
            raise ValueError(f"x is {x.dtype} but {name} is {other.dtype}; cast one of them")


def _is_plain(x: Tensor) -> bool:
    return x.dtype == torch.float64 or x.shape[1] > MAX_WIDTH or not uses_triton(x)


def _cut(x: Tensor, per_processor: int) -> tuple[int, int]:
    """Rows of a chunk, and how many chunks there are: as many as run at once, so that none waits for another."""
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4
    chunk_rows = max(MIN_CHUNK_ROWS, -(-len(x) // (processors * max(1, per_processor))))
    return chunk_rows, -(-len(x) // chunk_rows)


def _dense_lines(part: Tensor) -> Tensor:
    """`part` itself if the values of each line are side by side, as in a block of columns."""
    return part if part.stride(1) == 1 else part.contiguous()


def _stride(part: Tensor | None) -> int:
    return 0 if part is None else part.stride(0)


class _ImageTable:
    """Sums over the rows of each image, from the parts that chunks of rows write down; see `norm_kernels`."""

    def __init__(self, x: Tensor, num_chunks: int, num_images: int, num_sums: int):
        self.x, self.num_images, self.num_sums = x, num_images, num_sums
        lines = num_chunks + num_images if num_images else 0
        self.parts = torch.empty(num_sums, lines, x.shape[1], device=x.device)
        self.chunks = torch.zeros(2, num_images, dtype=torch.int32, device=x.device)  # of an image: first, after last
        self.arguments = (*self.parts, *self.chunks)

    def sums(self, weight: Tensor | None = None) -> list[Tensor]:
        """Of each image [I, D], in x's dtype; the second times `weight`."""
        from oneflow_kernels import norm_kernels as kernels

        width, launch = self.x.shape[1], kernels.IMAGE_SUMS.best(self.x)
        shape = self.num_sums, self.num_images, width
        sums = [torch.empty(shape[1:], dtype=self.x.dtype, device=self.x.device) for _ in range(self.num_sums)]
        kernels.image_sums[(self.num_images * -(-width // launch.tiles["COLS"]),)](
            *self.chunks, self.parts[0], self.parts[-1], weight, sums[0], sums[-1], width,
            HAS_SLOPE=self.num_sums == 2, **launch.options(),
        )  # fmt: skip
        return sums


NORM_INPUTS = "Tensor x, Tensor weight, Tensor? shift, Tensor? scale, Tensor? row_image, float eps"


@torch.library.custom_op("oneflow::modulated_rms_norm", mutates_args=(), schema=f"({NORM_INPUTS}) -> Tensor")
def _norm(
    x: Tensor, weight: Tensor, shift: Tensor | None, scale: Tensor | None, row_image: Tensor | None, eps: float
) -> Tensor:
    from oneflow_kernels import norm_kernels as kernels  # triton is not on every machine

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, width = x.shape
    shift, scale = (part if part is None else _dense_lines(part) for part in (shift, scale))
    launch = kernels.launches_for(kernels.FORWARD, width).best(x)
    with torch.cuda.device_of(x):
        kernels.norm_forward[(num_rows,)](
            x.contiguous(), weight.contiguous(), shift, scale, row_image, out,
            0 if scale is None else len(scale), width, _stride(shift), _stride(scale), eps,
            IS_MODULATED=scale is not None, **launch.options(),
        )  # fmt: skip
    return out


@_norm.register_fake
def _(
    x: Tensor, weight: Tensor, shift: Tensor | None, scale: Tensor | None, row_image: Tensor | None, eps: float
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "oneflow::modulated_rms_norm_backward", mutates_args=(), schema=f"(Tensor grad, {NORM_INPUTS}) -> Tensor[]"
)
def _norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    row_image: Tensor | None,
    eps: float,
) -> list[Tensor]:
    from oneflow_kernels import norm_kernels as kernels

    num_rows, width = x.shape
    launch = kernels.launches_for(kernels.BACKWARD, width).best(x)
    chunk_rows, num_chunks = _cut(x, WARPS_PER_PROCESSOR // launch.num_warps)
    weight, scale = weight.contiguous(), scale if scale is None else _dense_lines(scale)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    weight_parts = torch.empty(num_chunks, width, device=x.device)
    table = _ImageTable(x, num_chunks, 0 if scale is None else len(scale), num_sums=2)
    with torch.cuda.device_of(x):
        kernels.norm_backward[(num_chunks,)](
            grad.contiguous(), x.contiguous(), weight, scale, row_image, grad_x, weight_parts, *table.arguments,
            num_rows, table.num_images, chunk_rows, width, _stride(scale), eps,
            IS_MODULATED=scale is not None, **launch.options(),
        )  # fmt: skip
        grads = [grad_x, weight_parts.sum(0).to(weight.dtype)]
        return grads if scale is None else grads + table.sums(weight)


@_norm_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    row_image: Tensor | None,
    eps: float,
) -> list[Tensor]:
    parts = [part for part in (x, weight, shift, scale) if part is not None]
    return [part.new_empty(part.shape) for part in parts]


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _norm_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    return *grads, *[None] * (6 - len(grads))


_norm.register_autograd(_norm_gradients, setup_context=_save_norm)


@torch.library.custom_op(
    "oneflow::gated_add", mutates_args=(), schema="(Tensor x, Tensor y, Tensor gate, Tensor row_image) -> Tensor"
)
def _gated_add(x: Tensor, y: Tensor, gate: Tensor, row_image: Tensor) -> Tensor:
    from oneflow_kernels import norm_kernels as kernels

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, width = x.shape
    launch = kernels.launches_for(kernels.FORWARD, width).best(x)
    gate = _dense_lines(gate)
    with torch.cuda.device_of(x):
        kernels.gate_forward[(num_rows,)](
            x.contiguous(), y.contiguous(), gate, row_image, out, len(gate), width, gate.stride(0), **launch.options()
        )
    return out


@_gated_add.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor, row_image: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "oneflow::gated_add_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor y, Tensor gate, Tensor row_image) -> (Tensor, Tensor)",
)
def _gated_add_backward(grad: Tensor, y: Tensor, gate: Tensor, row_image: Tensor) -> tuple[Tensor, Tensor]:
    from oneflow_kernels import norm_kernels as kernels

    num_rows, width = y.shape
    launch = kernels.GATE_BACKWARD.best(y)
    num_blocks = -(-width // launch.tiles["COLS"])
    chunk_rows, num_chunks = _cut(y, GATE_WARPS_PER_PROCESSOR // launch.num_warps // num_blocks)
    gate = _dense_lines(gate)
    grad_y = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    table = _ImageTable(y, num_chunks, len(gate), num_sums=1)
    with torch.cuda.device_of(y):
        kernels.gate_backward[(num_chunks * num_blocks,)](
            grad.contiguous(), y.contiguous(), gate, row_image, grad_y, *table.arguments,
            num_rows, len(gate), chunk_rows, width, gate.stride(0), **launch.options(),
        )  # fmt: skip
        (grad_gate,) = table.sums()
    return grad_y, grad_gate


@_gated_add_backward.register_fake
def _(grad: Tensor, y: Tensor, gate: Tensor, row_image: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _save_gate(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gate_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, *_gated_add_backward(grad, *ctx.saved_tensors), None


_gated_add.register_autograd(_gate_gradients, setup_context=_save_gate)
