"""RMS norm with modulation by image, and the gated residual, as Triton kernels."""

# Shapes: T rows, D width, I images, P chunks of consecutive rows. Tensors are contiguous, but for the lines of shift,
# scale and gate [I, D], which are `*_stride` apart.
#
# Sums over the rows of an image, without atomics: images ascend from row to row, and so do chunks; so the pairs
# (chunk, image) that meet, in the order of their rows, have ascending sums chunk + image, no two the same. A chunk
# writes its part of an image's sum to line chunk + image of a table of P + I lines, and each image adds its own lines.

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import triton
import triton.language as tl

from oneflow_kernels.launches import ALL, Launch, Launches, Variant, describe, on
from oneflow_kernels.triton_ops import cast

# A row lies in the registers of one program: a launch serves widths up to its COLS, and the narrowest that fits is
# taken. AHEAD: the next row is loaded before this one is computed; the widest leaves no registers for it.


def _by_width(name: str, *launches: Launch) -> dict[int, Launches]:
    widths = sorted({launch.tiles["COLS"] for launch in launches})
    return {
        width: Launches(f"{name}, width {width}", on(ALL, *(own for own in launches if own.tiles["COLS"] == width)))
        for width in widths
    }


FORWARD = _by_width(
    "row forward",
    Launch({"COLS": 512}, 1, 1),
    Launch({"COLS": 1024}, 2, 1),
    Launch({"COLS": 2048}, 4, 1),
    Launch({"COLS": 2048}, 8, 1),
    Launch({"COLS": 4096}, 8, 1),
    Launch({"COLS": 4096}, 4, 1),
    Launch({"COLS": 8192}, 16, 1),
)
BACKWARD = _by_width(
    "norm backward",
    Launch({"COLS": 512, "AHEAD": 1}, 2, 1),
    Launch({"COLS": 1024, "AHEAD": 1}, 4, 1),
    Launch({"COLS": 2048, "AHEAD": 1}, 8, 1),
    Launch({"COLS": 2048, "AHEAD": 0}, 8, 1),
    Launch({"COLS": 4096, "AHEAD": 1}, 16, 1),
    Launch({"COLS": 4096, "AHEAD": 0}, 16, 1),
    Launch({"COLS": 8192, "AHEAD": 0}, 16, 1),
)
GATE_BACKWARD = Launches("gate backward", on(ALL, Launch({"COLS": 1024}, 4, 1)))  # in blocks of columns
IMAGE_SUMS = Launches("image sums", on(ALL, Launch({"CHUNKS": 8, "COLS": 256}, 4, 1)))


def launches_for(table: dict[int, Launches], width: int) -> Launches:
    """The narrowest that take rows of this width."""
    return next(launches for columns, launches in table.items() if columns >= width)


@no_type_check
@triton.jit(do_not_specialize=["num_images"])
def norm_forward(
    x, weight, shift, scale, row_image, out, num_images, width, shift_stride, scale_stride, eps,
    COLS: tl.constexpr, IS_MODULATED: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    inside = cols < width
    value = tl.load(x + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    result = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps) * factor
    if IS_MODULATED:
        image = tl.load(row_image + row)
        has_image = inside & (image < num_images)
        line_scale = tl.load(scale + image * scale_stride + cols, mask=has_image, other=1.0).to(tl.float32)
        line_shift = tl.load(shift + image * shift_stride + cols, mask=has_image, other=0.0).to(tl.float32)
        result = result * line_scale + line_shift
    tl.store(out + row * width + cols, cast(result, out.dtype.element_ty), mask=inside)


@no_type_check
@triton.jit(do_not_specialize=["num_images"])
def gate_forward(x, y, gate, row_image, out, num_images, width, gate_stride, COLS: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    inside = cols < width
    image = tl.load(row_image + row)
    has_image = inside & (image < num_images)
    residual = tl.load(x + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(y + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + image * gate_stride + cols, mask=has_image, other=1.0).to(tl.float32)
    result = residual + factor * value
    tl.store(out + row * width + cols, cast(result, out.dtype.element_ty), mask=inside)


@no_type_check
@triton.jit
def _follow(row_image, row, end, num_rows, chunk, first_chunk, end_chunk, num_images):
    """The image of a row, and whether its rows end here, in this chunk.

    Where they begin and end in all, the chunk is written down, so that lines that no chunk wrote are not read.
    """
    image = tl.load(row_image + row).to(tl.int32)
    is_first = tl.load(row_image + row - 1, mask=row > 0, other=-1) != image
    is_last = tl.load(row_image + row + 1, mask=row + 1 < num_rows, other=-1) != image
    tl.store(first_chunk + image, chunk, mask=is_first & (image < num_images))
    tl.store(end_chunk + image, chunk + 1, mask=is_last & (image < num_images))
    return image, is_last | (row + 1 == end)


@no_type_check
@triton.jit(do_not_specialize=["num_rows", "num_images", "chunk_rows"])
def norm_backward(
    grad, x, weight, scale, row_image, grad_x, weight_parts, shift_parts, scale_parts, first_chunk, end_chunk,
    num_rows, num_images, chunk_rows, width, scale_stride, eps,
    COLS: tl.constexpr, AHEAD: tl.constexpr, IS_MODULATED: tl.constexpr,
):  # fmt: skip
    """A chunk of rows: the gradient of x, and this chunk's part of all sums over rows.

    With n = x / rms and f = weight * scale, grad_x = (grad f - n mean(grad f n)) / rms. Over the rows of one image,
    `total` sums grad and `slope` grad n; weight's gradient is the sum over images of scale * slope.
    """
    chunk = tl.program_id(0)
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, num_rows)
    cols = tl.arange(0, COLS)
    inside = cols < width
    own = weight_parts + chunk.to(tl.int64) * width + cols
    has_part = False
    total = tl.zeros([COLS], tl.float32)
    slope = tl.zeros([COLS], tl.float32)
    if AHEAD:
        next_value = tl.load(x + first.to(tl.int64) * width + cols, mask=inside, other=0.0)
        next_up = tl.load(grad + first.to(tl.int64) * width + cols, mask=inside, other=0.0)
    for i in range(end - first):
        row = first + i
        start = row.to(tl.int64) * width
        if AHEAD:
            value, up = next_value.to(tl.float32), next_up.to(tl.float32)
            is_next = inside & (row + 1 < end)
            next_value = tl.load(x + start + width + cols, mask=is_next, other=0.0)
            next_up = tl.load(grad + start + width + cols, mask=is_next, other=0.0)
        else:
            value = tl.load(x + start + cols, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(grad + start + cols, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)  # again: registers are scarce
        if IS_MODULATED:
            image, is_last = _follow(row_image, row, end, num_rows, chunk, first_chunk, end_chunk, num_images)
            has_image = inside & (image < num_images)
            line = scale + image.to(tl.int64) * scale_stride + cols
            factor *= tl.load(line, mask=has_image, other=1.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
        mean = tl.sum(up * factor * value, 0) * inverse / width
        normed = value * inverse
        result = (up * factor - normed * mean) * inverse
        tl.store(grad_x + start + cols, cast(result, grad_x.dtype.element_ty), mask=inside)
        slope += up * normed
        if IS_MODULATED:
            total += up
            if is_last:
                part = (chunk + image).to(tl.int64) * width + cols
                tl.store(shift_parts + part, total, mask=has_image)
                tl.store(scale_parts + part, slope, mask=has_image)
                so_far = tl.load(own, mask=inside & has_part, other=0.0)  # in memory: images end seldom
                slope *= tl.load(line, mask=has_image, other=1.0).to(tl.float32)
                tl.store(own, so_far + slope, mask=inside)
                tl.debug_barrier()  # what one thread stores, another may load
                has_part = True
                total = tl.zeros([COLS], tl.float32)
                slope = tl.zeros([COLS], tl.float32)
    if not IS_MODULATED:
        tl.store(own, slope, mask=inside)


@no_type_check
@triton.jit(do_not_specialize=["num_rows", "num_images", "chunk_rows"])
def gate_backward(
    grad, y, gate, row_image, grad_y, gate_parts, first_chunk, end_chunk,
    num_rows, num_images, chunk_rows, width, gate_stride, COLS: tl.constexpr,
):  # fmt: skip
    """A chunk of rows in one block of columns: the gradient of y, and this chunk's part of grad * y of each image."""
    num_blocks = tl.cdiv(width, COLS)
    chunk = tl.program_id(0) // num_blocks
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, num_rows)
    cols = tl.program_id(0) % num_blocks * COLS + tl.arange(0, COLS)
    inside = cols < width
    slope = tl.zeros([COLS], tl.float32)
    for i in range(end - first):
        row = first + i
        start = row.to(tl.int64) * width
        image, is_last = _follow(row_image, row, end, num_rows, chunk, first_chunk, end_chunk, num_images)
        has_image = inside & (image < num_images)
        line = gate + image.to(tl.int64) * gate_stride + cols
        up = tl.load(grad + start + cols, mask=inside, other=0.0).to(tl.float32)
        result = up * tl.load(line, mask=has_image, other=1.0).to(tl.float32)
        tl.store(grad_y + start + cols, cast(result, grad_y.dtype.element_ty), mask=inside)
        slope += up * tl.load(y + start + cols, mask=has_image, other=0.0).to(tl.float32)
        if is_last:
            tl.store(gate_parts + (chunk + image).to(tl.int64) * width + cols, slope, mask=has_image)
            slope = tl.zeros([COLS], tl.float32)


@no_type_check
@triton.jit
def image_sums(
    first_chunk, end_chunk, total_parts, slope_parts, weight, total, slope, width,
    CHUNKS: tl.constexpr, COLS: tl.constexpr, HAS_SLOPE: tl.constexpr,
):  # fmt: skip
    """One image in one block of columns: the sum of its lines, and weight times the sum of its slopes."""
    num_blocks = tl.cdiv(width, COLS)
    image = (tl.program_id(0) // num_blocks).to(tl.int64)
    cols = tl.program_id(0) % num_blocks * COLS + tl.arange(0, COLS)
    inside = cols < width
    total_sum = tl.zeros([COLS], tl.float32)
    slope_sum = tl.zeros([COLS], tl.float32)
    end = tl.load(end_chunk + image)
    for first in range(tl.load(first_chunk + image), end, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        line = (chunk + image)[:, None] * width + cols[None, :]
        is_own = (chunk < end)[:, None] & inside[None, :]
        total_sum += tl.sum(tl.load(total_parts + line, mask=is_own, other=0.0), 0)
        if HAS_SLOPE:
            slope_sum += tl.sum(tl.load(slope_parts + line, mask=is_own, other=0.0), 0)
    tl.store(total + image * width + cols, cast(total_sum, total.dtype.element_ty), mask=inside)
    if HAS_SLOPE:
        slope_sum *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
        tl.store(slope + image * width + cols, cast(slope_sum, slope.dtype.element_ty), mask=inside)


# Arguments that are not tensors of the dtype at hand.
TYPES = {
    **dict.fromkeys(("weight_parts", "shift_parts", "scale_parts", "gate_parts"), "*fp32"),
    **dict.fromkeys(("total_parts", "slope_parts"), "*fp32"),
    **dict.fromkeys(("first_chunk", "end_chunk"), "*i32"),
    **dict.fromkeys(("num_rows", "num_images", "chunk_rows"), "i32"),
    **dict.fromkeys(("width", "shift_stride", "scale_stride", "gate_stride"), "i32:16"),
    "row_image": "*i64",
    "eps": "fp32",
}


def variants() -> Iterator[Variant]:
    """Every kernel as it is shipped."""
    for dtype in ("bf16", "fp16", "fp32"):
        for rules in ({"IS_MODULATED": True}, {"IS_MODULATED": False}):
            for launches in FORWARD.values():
                yield from describe(norm_forward, launches, rules, TYPES, dtype)
            for launches in BACKWARD.values():
                yield from describe(norm_backward, launches, rules, TYPES, dtype)
        for launches in FORWARD.values():
            yield from describe(gate_forward, launches, {}, TYPES, dtype)
        yield from describe(gate_backward, GATE_BACKWARD, {}, TYPES, dtype)
        for has_slope in (True, False):
            yield from describe(image_sums, IMAGE_SUMS, {"HAS_SLOPE": has_slope}, TYPES, dtype)
