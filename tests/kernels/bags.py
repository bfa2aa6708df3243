"""Bags of tokens for the tests of what is computed of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from oneflow_kernels import bag_cross_entropy as module
from oneflow_kernels import reference_bag
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.vocabulary_part import WHOLE, VocabularyPart


class Case(NamedTuple):
    """Arguments of `bag_cross_entropy`."""

    hidden: Tensor
    weight: Tensor
    bag_tokens: Tensor
    bag_slot: Tensor
    bag_weight: Tensor
    num_filled: int


SHAPES = {  # bag_slot of a case of 7 slots
    "usual": [0, 0, 2, 3, 3, 3, 6],
    "every slot": list(range(7)),
    "one token": [4],
    "bag of 500": [2] * 500,
    "bag of 500 and others": [0, *[2] * 500, 3, 5, 5],
    "none": [],
}
every_shape = pytest.mark.parametrize("bag_slot", SHAPES.values(), ids=SHAPES)


def make_case(
    bag_slot: list[int],
    dtype: torch.dtype = torch.float64,
    num_slots: int = 7,
    width: int = 12,
    vocab: int = 45,
    seed: int = 0,
    scale: float = 1.0,
) -> Case:
    """Normal operands; weights between 0 and 2, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(num_slots, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    bag_weight = 2.0 * torch.rand(len(bag_slot), generator=generator)
    bag_weight[torch.rand(len(bag_slot), generator=generator) < 0.1] = 0.0
    return Case(
        hidden=hidden.to(dtype).requires_grad_(),
        weight=weight.to(dtype).requires_grad_(),
        bag_tokens=torch.randint(vocab, (len(bag_slot),), generator=generator),
        bag_slot=torch.tensor(bag_slot, dtype=torch.int64),
        bag_weight=bag_weight,
        num_filled=len(set(bag_slot)),
    )


class Result(NamedTuple):
    """The loss, and gradients of three times the loss."""

    loss: Tensor
    d_hidden: Tensor
    d_weight: Tensor


def run(case: Case, part: VocabularyPart = WHOLE) -> Result:
    """Of the function that is shipped."""
    return _differentiated(bag_cross_entropy(*case, part=part), *case[:2])


def run_alone(case: Case, part: VocabularyPart = WHOLE) -> Tensor:
    """The loss where nobody wants a gradient."""
    with torch.no_grad():
        return bag_cross_entropy(*case, part=part)


def truth(case: Case) -> Result:
    """By autograd of the definition in float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in case[:2])
    return _differentiated(reference_bag.bag_cross_entropy(hidden, weight, *case[2:5]), hidden, weight)


def same_formula(case: Case) -> Result:
    """By autograd of all logits, in the dtype of the operands."""
    logits = case.hidden @ case.weight.T
    nll = logits.logsumexp(-1)[case.bag_slot] - logits[case.bag_slot, case.bag_tokens]
    return _differentiated((case.bag_weight * nll).sum(), *case[:2])


def _differentiated(loss: Tensor, hidden: Tensor, weight: Tensor) -> Result:
    return Result(loss.detach(), *torch.autograd.grad(3.0 * loss, (hidden, weight)))


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference; of nothing, none."""
    return (actual.double() - expected).norm().item()


def make_small(patch: pytest.MonkeyPatch, chunk: int, kept: float) -> None:
    """Few slots have logits at once; probabilities of a few times the width are kept."""
    for name, value in {"CHUNK_SLOTS": chunk, "CHUNK_LOGITS": 1, "MULTIPLE": 1, "KEPT": kept}.items():
        patch.setattr(module, name, value)


def assert_exact(actual: Result | list[Tensor], expected: Result | list[Tensor], tolerance: float = 1e-12) -> None:
    for x, y in zip(actual, expected, strict=True):
        assert error(x, y.double()) <= tolerance * (1.0 + y.double().norm().item())


def poison(patch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written holds NaN, or the largest integer."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        patch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(make: object) -> object:
    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = make(*args, **kwargs)  # type: ignore[operator]
        if tensor.dtype == torch.bool:
            return tensor.fill_(True)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    return poisoned
