from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.model.llama import split_product
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import MOMENTUM, NUM_ITERATIONS, OF_ADAMW, Muon, make_optimizer, scaled_orthogonal
from oneflow_dist.optim import AdamW
from oneflow_dist.stored_tensors import named_leaves

NO_SKIP, ONE = torch.zeros(()), torch.ones(())


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = scaled_orthogonal(x, dtype) / (OF_ADAMW * math.sqrt(max(shape)))
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.65 or shape == (48, 48)  # a square one may have values that are next to nothing
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    rotated = u.T @ y @ v.T
    rest = (rotated - torch.diag(rotated.diagonal())).norm() / rotated.norm()
    assert rest < (1e-4 if dtype == torch.float32 else 0.05)
    assert torch.equal(scaled_orthogonal(x * 100.0, torch.float32) > 0, scaled_orthogonal(x, torch.float32) > 0)


@pytest.mark.usefixtures("group_of_one")
def test_the_products_are_torchs_muon(make_model: Callable[..., OneFlow], make_config: Callable[..., Config]) -> None:
    """Matrix by matrix of torch's own, whose iterations are in bfloat16."""
    config = make_config("optim.matrices=muon", "optim.weight_decay=0.3", "train.precision=bf16")
    model, theirs = make_model(config), make_model(config)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, Muon)
    parts = {
        name: [torch.nn.Parameter(part.clone()) for part in split_product(name, weight.detach(), config.model)]
        for name, weight in theirs.named_parameters()
        if name in optimizer.matrices
    }
    all_parts = [part for of_weight in parts.values() for part in of_weight]
    reference = torch.optim.Muon(
        all_parts, lr=0.02, weight_decay=0.3, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw", ns_steps=NUM_ITERATIONS
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for name, weight in model.named_parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
            for part, gradient in zip(
                parts.get(name, []), split_product(name, weight.grad, config.model), strict=False
            ):
                part.grad = gradient / 2.0
        optimizer.step(0.02, torch.tensor(2.0), NO_SKIP)
        reference.step()
    for name, of_weight in parts.items():
        moved = split_product(name, model.get_parameter(name).detach(), config.model)
        old = split_product(name, before[name], config.model)
        for ours, part, first in zip(moved, of_weight, old, strict=True):
            assert (ours - part).norm() < 0.03 * (part - first).norm(), name  # five iterations round to eight bits


@pytest.mark.usefixtures("group_of_one")
def test_all_but_the_products_of_the_trunk_move_as_by_adamw(
    make_model: Callable[..., OneFlow], make_config: Callable[..., Config]
) -> None:
    config = make_config("optim.matrices=muon")
    ours, theirs = make_model(config), make_model(config)
    muon = make_optimizer(ours, config)
    adamw = make_optimizer(theirs, make_config("optim.matrices=adamw"))
    assert type(adamw) is AdamW
    for model, optimizer in ((ours, muon), (theirs, adamw)):
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step(0.01, ONE, NO_SKIP)
    products = ("attention.qkv.weight", "attention.out.weight", "mlp.gate_up.weight", "mlp.down.weight")
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, other) != name.endswith(products), name


@pytest.mark.usefixtures("group_of_one")
def test_a_skipped_step_moves_nothing_whatever_its_gradients_are(
    make_model: Callable[..., OneFlow], make_config: Callable[..., Config]
) -> None:
    config = make_config("optim.matrices=muon")
    model = make_model(config)
    optimizer = make_optimizer(model, config)
    for value, is_skipped in ((1.0, NO_SKIP), (math.nan, ONE)):
        state = {"w": dict(model.named_parameters()), **optimizer.tensors}
        before = {name: tensor.detach().clone() for name, tensor in named_leaves(state)}
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, value)
        optimizer.step(0.01, ONE, is_skipped)
    for name, tensor in named_leaves(state):
        assert torch.equal(tensor, before[name]), name
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())
