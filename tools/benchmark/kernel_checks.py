"""Whether the kernels are right on this device: against float64, on memory full of NaN, twice with the same bits."""

# Shapes: T rows, U keys, D width, h query heads, g key and value heads, d head width, N slots, V vocabulary.

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oneflow_dist.model.philox import normal_values
from oneflow_kernels import reference_bag
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.key_intervals import (
    KeyIntervals,
    block_intervals,
    cached_intervals,
    causal_intervals,
    document_intervals,
    transfusion_intervals,
)
from oneflow_kernels.sample_bag import sample_bag
from tools.benchmark.link import in_a_line
from tools.benchmark.report import Line

Function = Callable[..., Any]  # of tensors; a tensor
Check = tuple[str, torch.dtype, Callable[[], Line]]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TIMES = 2.0  # an error may be so many times that of the definition in the same dtype
SLACK = 1e-6  # of the norm of the result, beyond that
KEPT = 37  # keys of earlier passes in front of those of each document's rows


def run_checks(device: torch.device, rows: int, only: tuple[str, ...] = ("",)) -> Iterator[Line]:
    """Every check: errors of ours and of the definition, and whether all is as it must be.

    Args:
        rows: about so many in each.
        only: checks whose names begin with one of these.
    """
    for name, dtype, check in all_checks(device, rows):
        if name.startswith(only):
            line = {"name": name, "dtype": str(dtype).removeprefix("torch.")}
            try:
                yield line | check()
            except Exception as error:  # noqa: BLE001  a kernel that does not compile is wrong, and the next is checked
                yield line | {"failed": in_a_line(error), "is_right": False}


def all_checks(device: torch.device, rows: int) -> Iterator[Check]:
    """Name, dtype and what makes the line of each."""
    make = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.float64, generator=make)

    yield from attention_checks(device, rows, normal)
    yield from bag_checks(device, rows, normal, make)
    yield "drawn tokens", torch.bfloat16, functools.partial(check_drawn_tokens, device, rows)
    yield "first weights", torch.float32, functools.partial(check_first_weights, device, rows)


def attention_checks(device: torch.device, rows: int, normal: Callable[..., Tensor]) -> Iterator[Check]:
    """Each rule, on documents of odd sizes, one of them empty and one of a single row; the empty one has kept keys."""
    cuts = [0, 1, 1, rows // 7, rows // 3, rows]
    ends = torch.tensor(cuts, dtype=torch.int32, device=device)
    image = torch.arange(rows, device=device) // 5
    num_images = int(image.max()) + 1
    row_image = torch.where(image % 2 == 1, image, num_images)
    row_image[ends[1:-1].long()] = num_images  # no image reaches into another document
    documents = document_intervals(ends, rows)
    row_end = torch.minimum((torch.arange(rows, dtype=torch.int32, device=device) // 9 + 1) * 9, documents.end)
    key_ends = ends + KEPT * torch.arange(len(cuts), dtype=torch.int32, device=device)
    rules = {
        "documents": documents,
        "causal": causal_intervals(ends, rows),
        "Transfusion": transfusion_intervals(ends, row_image, num_images),
        "blocks": block_intervals(ends, row_end),
        "kept keys": cached_intervals(ends, key_ends, rows, int(key_ends[-1])),
    }
    for rule, intervals in rules.items():
        num_keys = len(intervals.query_start)
        for heads, groups, width in ((4, 1, 64), (8, 8, 128), (4, 2, 32)):
            query, key, value = normal(rows, heads, width), *(normal(num_keys, heads // groups, width) for _ in "kv")
            for dtype in DTYPES:
                check = functools.partial(
                    compare,
                    lambda q, k, v, *bounds: interval_attention(q, k, v, KeyIntervals(*bounds), len(k)),
                    attention_definition,
                    (query, key, value, *intervals),
                    dtype,
                )
                yield f"attention, {rule}, {heads} / {heads // groups} heads of {width}", dtype, check


def attention_definition(query: Tensor, key: Tensor, value: Tensor, start: Tensor, end: Tensor, *_: Tensor) -> Tensor:
    """One mask, all scores, each step in the inputs' dtype."""
    other = torch.arange(len(key), device=query.device)
    is_seen = (start[:, None] <= other) & (other < end[:, None])
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    scores = (q @ k.mT * query.shape[2] ** -0.5).masked_fill(~is_seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def bag_checks(
    device: torch.device, rows: int, normal: Callable[..., Tensor], make: torch.Generator
) -> Iterator[Check]:
    """Bags of odd sizes, many empty, and a vocabulary that no tile divides."""
    slots, width, vocab = rows, 96, 3 * rows + 5
    hidden, weight = normal(slots, width), normal(vocab, width) * 0.2
    bag_slot = torch.randint(slots // 2, (slots,), device=device, generator=make).sort().values * 2
    bag_tokens = torch.randint(vocab, (slots,), device=device, generator=make)
    bag_weight = torch.rand(slots, device=device, generator=make)
    ours = functools.partial(bag_cross_entropy, num_filled=len(bag_slot.unique()))
    inputs = hidden, weight, bag_tokens, bag_slot, bag_weight
    for dtype in DTYPES:
        yield "bag loss", dtype, functools.partial(compare, ours, reference_bag.bag_cross_entropy, inputs, dtype)


def compare(ours: Function, definition: Function, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Line:
    """Outputs and gradients.

    Args:
        inputs: those in float64 are rounded to `dtype` and get gradients.
    """
    inputs = tuple(x.to(dtype).requires_grad_() if x.dtype == torch.float64 else x for x in inputs)
    widened = tuple(x.detach().double().requires_grad_() if x.requires_grad else x for x in inputs)
    truth, defined = _outputs(definition, widened), _outputs(definition, inputs)
    with poisoned_memory():
        computed, again = (_outputs(ours, inputs) for _ in range(2))
    errors = [(_error(x, right), _error(y, right)) for x, y, right in zip(computed, defined, truth, strict=True)]
    is_bounded = all(error <= TIMES * other + SLACK for error, other in errors)  # a NaN is not
    is_repeated = all(torch.equal(x, y) for x, y in zip(computed, again, strict=True))
    error, error_of_definition = max(errors, key=lambda pair: pair[0] / (pair[1] + SLACK))
    return {"error": error, "error_of_definition": error_of_definition, "is_right": is_bounded and is_repeated}


def check_drawn_tokens(device: torch.device, rows: int) -> Line:
    """Drawn tokens are those of the largest noisy logits, computed from all logits in float64."""
    make = torch.Generator(device).manual_seed(1)
    hidden = torch.randn(rows, 96, device=device, generator=make).bfloat16()
    weight = torch.randn(2 * rows + 3, 96, device=device, generator=make).bfloat16()
    keys, limit = torch.randint(2**62, (rows,), device=device, generator=make), 2 * rows - 1
    with poisoned_memory():
        drawn, again = (sample_bag(hidden, weight, keys, 0.7, limit) for _ in range(2))
    token = torch.arange(limit, device=device)
    noisy = (hidden.double() @ weight[:limit].double().T) / 0.7 + reference_bag.gumbel(keys, token).double()
    behind = float((noisy.amax(-1) - noisy.gather(1, drawn[:, None]).squeeze(1)).max())
    is_right = behind < 1e-3 and torch.equal(drawn, again)
    return {"error": behind, "error_of_definition": 0.0, "is_right": is_right}


def check_first_weights(device: torch.device, rows: int) -> Line:
    """First weights are those of a CPU, bit by bit."""
    indices = torch.arange(8 * rows, device=device)
    drawn = normal_values(0, "first values", indices, indices)[-64:, -64:].cpu()
    right = normal_values(0, "first values", indices[-64:].cpu(), indices[-64:].cpu())
    return {"error": _error(drawn, right), "error_of_definition": 0.0, "is_right": torch.equal(drawn, right)}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Where nothing has been written there is NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _outputs(function: Function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The result, and gradients for a slope of it that does not depend on who computes."""
    output: Tensor = function(*inputs)
    slope = torch.linspace(-1.0, 1.0, output.numel()).bfloat16() if output.ndim else torch.ones(())
    learned = [x for x in inputs if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, learned, slope.to(output).view(output.shape))]


def _error(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm())
