"""Whether the kernels are right on this device: against float64, on memory full of NaN, twice with the same bits."""

# Shapes: T rows, D width, h query heads, g key and value heads, d head width, I images, N slots, V vocabulary.

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oneflow_dist.model.philox import normal_values
from oneflow_kernels import reference_bag
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.key_intervals import KeyIntervals, causal_intervals, document_intervals, transfusion_intervals
from oneflow_kernels.sample_bag import sample_bag
from tools.benchmark.link import in_a_line
from tools.benchmark.schedule import Line

Function = Callable[..., Any]  # of tensors; a tensor or several
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TIMES = 2.0  # an error may be so many times that of the definition in the same dtype
SLACK = 1e-6  # of the norm of the result, beyond that


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A kernel on inputs of odd sizes, and what it has to compute."""

    name: str
    inputs: tuple[Tensor, ...]  # in float64 those that are rounded to a dtype and get gradients
    ours: Function
    definition: Function


def run_checks(device: torch.device, rows: int, only: tuple[str, ...] = ("",)) -> Iterator[Line]:
    """Every check in every dtype: errors of ours and of the definition, and whether all is as it must be.

    Args:
        only: checks whose names begin with one of these.
    """
    for check in all_checks(device, rows):
        for dtype in DTYPES if check.name.startswith(only) else ():
            yield _named(check.name, dtype, functools.partial(run_check, check, dtype))
    if "drawn tokens".startswith(only):
        yield _named("drawn tokens", torch.bfloat16, functools.partial(check_drawn_tokens, device, rows))
    if "first weights".startswith(only):
        yield _named("first weights", torch.float32, functools.partial(check_first_weights, device, rows))


def _named(name: str, dtype: torch.dtype, check: Callable[[], Line]) -> Line:
    line = {"name": name, "dtype": str(dtype).removeprefix("torch.")}
    try:
        return line | check()
    except Exception as error:  # noqa: BLE001  a kernel that does not compile is wrong, and the next is checked
        return line | {"failed": in_a_line(error), "is_right": False}


def run_check(check: Check, dtype: torch.dtype) -> Line:
    """Outputs and gradients."""
    inputs = tuple(_as_input(x, dtype) for x in check.inputs)
    widened = tuple(x.detach().double().requires_grad_() if x.requires_grad else x for x in inputs)
    truth, same = _outputs(check.definition, widened), _outputs(check.definition, inputs)
    with poisoned_memory():
        found, again = (_outputs(check.ours, inputs) for _ in range(2))
    errors = [(_error(x, right), _error(y, right)) for x, y, right in zip(found, same, truth, strict=True)]
    is_right = all(own <= TIMES * other + SLACK for own, other in errors)  # a NaN is not
    is_repeated = all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    worst = max(errors, key=lambda pair: pair[0] / (pair[1] + SLACK))
    return {"error": worst[0], "error_of_definition": worst[1], "is_right": is_right and is_repeated}


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


def all_checks(device: torch.device, rows: int) -> Iterator[Check]:
    """Of about `rows` rows."""
    make = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.float64, generator=make)

    yield from attention_checks(device, rows, normal)
    yield from bag_checks(device, rows, normal, make)


def attention_checks(device: torch.device, rows: int, normal: Callable[..., Tensor]) -> Iterator[Check]:
    """Each rule, on documents of odd sizes, one of them empty and one of a single row."""
    cuts = [0, 1, 1, rows // 7, rows // 3, rows]
    ends = torch.tensor(cuts, dtype=torch.int32, device=device)
    image = torch.arange(rows, device=device) // 5
    num_images = int(image.max()) + 1
    row_image = torch.where(image % 2 == 1, image, num_images)
    row_image[ends[1:-1].long()] = num_images  # no image reaches into another document
    rules = {
        "documents": document_intervals(ends, rows),
        "causal": causal_intervals(ends, rows),
        "Transfusion": transfusion_intervals(ends, row_image, num_images),
    }
    for rule, intervals in rules.items():
        for heads, groups, width in ((4, 1, 64), (8, 8, 128), (4, 2, 32)):
            query, key, value = normal(rows, heads, width), *(normal(rows, heads // groups, width) for _ in range(2))
            yield Check(
                name=f"attention, {rule}, {heads} / {heads // groups} heads of {width}",
                inputs=(query, key, value, *intervals),
                ours=lambda q, k, v, *own: interval_attention(q, k, v, KeyIntervals(*own), rows),
                definition=lambda q, k, v, *own: attention_definition(q, k, v, KeyIntervals(*own)),
            )


def attention_definition(query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals) -> Tensor:
    """One mask, all scores, each step in the inputs' dtype."""
    other = torch.arange(len(query), device=query.device)
    is_seen = (intervals.start[:, None] <= other) & (other < intervals.end[:, None])
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
    num_filled = len(bag_slot.unique())
    yield Check(
        name="bag loss",
        inputs=(hidden, weight, bag_tokens, bag_slot, bag_weight),
        ours=functools.partial(bag_cross_entropy, num_filled=num_filled),
        definition=reference_bag.bag_cross_entropy,
    )


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
    places = torch.arange(8 * rows, device=device)
    drawn = normal_values(0, "first values", places, places)[-64:, -64:].cpu()
    right = normal_values(0, "first values", places[-64:].cpu(), places[-64:].cpu())
    error = float((drawn - right).norm() / right.norm())
    return {"error": error, "error_of_definition": 0.0, "is_right": torch.equal(drawn, right)}


def _as_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).requires_grad_() if x.dtype == torch.float64 else x


def _outputs(function: Function, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found = function(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    learned = [x for x in inputs if x.requires_grad]
    slopes = [torch.linspace(-1.0, 1.0, x.numel()).bfloat16().to(x).view(x.shape) for x in outputs]
    if outputs[0].ndim == 0:
        slopes = [torch.ones_like(outputs[0])]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, learned, slopes)]


def _error(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm())
