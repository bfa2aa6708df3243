from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from oneflow_dist.config import Config, OptimConfig, OptimGroup, load_config, write_config
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import AdamW, MovingAverage, clip_divisor, gradient_norm, learning_rate
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.parallel.sharding import freeze, reshard
from oneflow_dist.stored_tensors import named_leaves
from oneflow_dist.training import build_model
from tests.launching import Launcher

OPTIM = OptimConfig(
    lr=2.0,
    warmup_steps=4,
    lr_schedule="cosine",
    final_lr_fraction=0.1,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.3,
    max_grad_norm=1.0,
    ema_decay=0.9,
)


NO_SKIP, ONE = torch.zeros(()), torch.ones(())


def test_a_step_is_torchs_adamw_with_decay_of_matrices_alone(
    make_model: Callable[..., OneFlow], config: Config
) -> None:
    settings = dataclasses.replace(OPTIM, beta1=0.5, beta2=0.75, eps=1e-3)
    ours, theirs = make_model(config), make_model(config)
    optimizer = AdamW(ours, settings)
    spared = [p for name, p in theirs.named_parameters() if "norm" in name or name.endswith("bias")]
    decayed = [p for p in theirs.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": spared, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.5, 0.75), eps=1e-3, fused=True)
    for step in range(1, 4):
        gradients = with_gradients(ours, 1.0 + step)
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient / 2.0
        optimizer.step(0.01, torch.tensor(2.0), NO_SKIP)
        reference.step()
        for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7, msg=name)
        assert float(optimizer.clock) == step
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_skipped_step_moves_nothing_whatever_its_gradients_are(
    make_model: Callable[..., OneFlow], config: Config
) -> None:
    model = make_model(config)
    optimizer = AdamW(model, OPTIM)
    with_gradients(model, 1.0)
    optimizer.step(0.01, ONE, NO_SKIP)
    remembered = {"w": optimizer.weights, **optimizer.tensors}
    before = {name: value.detach().clone() for name, value in named_leaves(remembered)}
    with_gradients(model, math.nan)
    optimizer.step(0.01, torch.tensor(math.nan), ONE)
    for name, value in named_leaves(remembered):
        assert torch.equal(value, before[name]), name


def test_groups_learn_at_their_factors_and_what_is_frozen_has_neither_moments_nor_average(
    make_model: Callable[..., OneFlow], make_config: Callable[..., Config]
) -> None:
    """At the first step AdamW moves a weight without decay by lr, whatever its gradient is."""
    groups = (
        OptimGroup(names=("heads.*", "*.norm.weight"), lr_factor=0.5, decay_factor=0.0),
        OptimGroup(names=("embed*", "heads.zero*"), frozen=True),  # heads.zero belongs to the first
        OptimGroup(names=("blocks.0.*",), decay_factor=2.0),
    )
    config = make_config()
    config = dataclasses.replace(config, optim=dataclasses.replace(OPTIM, weight_decay=1.0, group=groups))
    model = make_model(config)
    freeze(model, config)
    optimizer, ema = AdamW(model, config.optim), MovingAverage(model, 0.9)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"embed.weight"}
    assert (
        optimizer.first_moments.keys() == ema.tensors.keys() == dict(model.named_parameters()).keys() - {"embed.weight"}
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in optimizer.weights.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.01, ONE, NO_SKIP)
    for name, parameter in model.named_parameters():
        first_group = name.startswith("heads.") or name.endswith(".norm.weight")
        lr = 0.0 if name == "embed.weight" else 0.005 if first_group else 0.01
        decay = 0.0 if first_group or parameter.ndim < 2 else 2.0 if name.startswith("blocks.0.") else 1.0
        expected = before[name] * (1.0 - lr * decay) - lr
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6, msg=name)


def step_often(config_path: str, num_steps: int) -> int:
    """By how many Python objects this process has grown over so many steps of the optimizer and the average."""
    config = load_config(config_path)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    optimizer, ema = make_optimizer(model, config), MovingAverage(model, 0.9)

    def make_steps(count: int) -> None:
        for step in range(1, count + 1):
            for parameter in model.parameters():
                parameter.grad = parameter.detach()
            optimizer.step(1e-4, clip_divisor(gradient_norm(model), 1.0), NO_SKIP)
            optimizer.zero_grad()
            ema.update(model, step)

    make_steps(3)  # what is remembered for ever is there
    gc.collect()
    before = len(gc.get_objects())
    make_steps(num_steps)
    gc.collect()
    return len(gc.get_objects()) - before


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_two_hundred_steps_of_sharded_weights_leave_no_objects_behind(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path, matrices: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(write_config(make_config(f"optim.matrices={matrices}")))
    assert all(grown < 100 for grown in launcher.call(2, step_often, str(path), 200))  # less than one in two steps


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("wsd", 4, 2.0),
        ("wsd", 15, 2.0),
        ("wsd", 17, 2.0 * (0.1 + 0.9 * 3 / 5)),
        ("wsd", 20, 0.2),
        ("inverse_sqrt", 2, 1.0),
        ("inverse_sqrt", 9, 2.0 * 2.0 / 3.0),
        ("inverse_sqrt", 18, 2.0 * math.sqrt(4 / 18) * (0.1 + 0.9 * 2 / 5)),
        ("constant", 20, 2.0),
    ],
)
def test_schedules_that_end_in_a_line(schedule: str, step: int, expected: float) -> None:
    config = dataclasses.replace(OPTIM, lr_schedule=schedule, decay_steps=5)
    assert learning_rate(step, 20, config) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 0.5),  # lr / warmup_steps: the first step already learns
        (3, 1.5),
        (4, 2.0),
        (5, 2.0 * (0.1 + 0.45 * (1.0 + math.cos(math.pi / 16)))),
        (12, 2.0 * 0.55),  # half way between warmup and end
        (20, 0.2),
    ],
)
def test_the_learning_rate_warms_up_and_falls_as_a_half_cosine(step: int, expected: float) -> None:
    assert learning_rate(step, 20, OPTIM) == pytest.approx(expected, rel=1e-12)


def test_a_constant_learning_rate_stays_after_the_warmup() -> None:
    constant = dataclasses.replace(OPTIM, lr_schedule="constant")
    assert [learning_rate(step, 20, constant) for step in (2, 4, 5, 20)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("warmup_steps", [0, 20, 50])
def test_the_learning_rate_is_positive_and_at_most_lr_for_any_warmup(warmup_steps: int) -> None:
    config = dataclasses.replace(OPTIM, warmup_steps=warmup_steps)
    rates = [learning_rate(step, 20, config) for step in range(1, 21)]
    assert all(0.0 < rate <= 2.0 for rate in rates)
    assert rates[-1] == pytest.approx({0: 0.2, 20: 2.0, 50: 0.8}[warmup_steps])


def with_gradients(model: OneFlow, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    gradients = [scale * torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    return gradients


def global_norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def norm_rounding(tensors: list[torch.Tensor]) -> float:
    """How exact a norm over all of them is in float32: roundings of a long sum, up or down as they come."""
    return torch.finfo(torch.float32).eps * sum(tensor.numel() for tensor in tensors) ** 0.5


def test_the_norm_is_that_of_all_gradients_together(make_model: Callable[..., OneFlow], config: Config) -> None:
    model = make_model(config)
    gradients = with_gradients(model, 1.0)
    assert float(gradient_norm(model)) == pytest.approx(global_norm(gradients), rel=norm_rounding(gradients))
    next(model.parameters()).grad[0, 0] = math.nan
    assert math.isnan(gradient_norm(model))


@pytest.mark.parametrize(("norm", "max_norm", "divisor"), [(3.0, 0.5, 6.0), (0.5, 0.5, 1.0), (0.1, 0.5, 1.0)])
def test_gradients_are_divided_by_what_their_norm_is_too_large(norm: float, max_norm: float, divisor: float) -> None:
    assert clip_divisor(torch.tensor(norm), max_norm).item() == divisor
    assert clip_divisor(torch.tensor(norm), math.inf).item() == 1.0


@pytest.mark.parametrize("every", [3, 8])
def test_an_average_that_moves_rarely_moves_as_far(
    make_model: Callable[..., OneFlow], config: Config, every: int
) -> None:
    """Towards weights that stand still, where it ends is where the one of every step ends."""
    model = make_model(config)
    often, rarely = MovingAverage(model, 0.5), MovingAverage(model, 0.5, every)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    first = {name: tensor.clone() for name, tensor in rarely.tensors.items()}
    for step in range(20 * every - every + 1, 20 * every + 1):  # where the decay is 0.5
        assert all(torch.equal(tensor, first[name]) for name, tensor in rarely.tensors.items())
        often.update(model, step)
        rarely.update(model, step)
    for name, tensor in rarely.tensors.items():
        torch.testing.assert_close(tensor, often.tensors[name], rtol=1e-5, atol=1e-7)


def test_the_average_is_that_of_float64_arithmetic(make_model: Callable[..., OneFlow], config: Config) -> None:
    model = make_model(config)
    ema = MovingAverage(model, decay=0.75)
    history = [[p.detach().double() for p in model.parameters()]]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 61):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        ema.update(model, step)
        history.append([p.detach().double() for p in model.parameters()])
    # a_s = sum over r of (1 - d_r) * prod_{q > r} d_q * w_r, with d_r = min(decay, (1 + r) / (10 + r)) and d_0 = 0
    decays = np.array([0.0] + [min(0.75, (1 + r) / (10 + r)) for r in range(1, 61)])
    weights = (1.0 - decays) * np.append(np.cumprod(decays[::-1])[::-1][1:], 1.0)
    assert weights.sum() == pytest.approx(1.0)
    for index, average in enumerate(ema.tensors.values()):
        expected = sum(weight * values[index] for weight, values in zip(weights, history, strict=True))
        torch.testing.assert_close(average.double(), expected, rtol=0.0, atol=3e-6)
        assert average.dtype == torch.float32


def test_the_average_starts_as_the_weights_and_follows_fast_at_first(
    make_model: Callable[..., OneFlow], config: Config
) -> None:
    model = make_model(config)
    ema = MovingAverage(model, decay=0.9999)
    assert all(torch.equal(ema.tensors[name], parameter) for name, parameter in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            ema_first = dict(ema.tensors)
    first = {name: tensor.clone() for name, tensor in ema_first.items()}
    ema.update(model, 1)  # decay 2 / 11
    for name, tensor in ema.tensors.items():
        torch.testing.assert_close(tensor, 1.0 + (first[name] - 1.0) * 2 / 11)


def test_applied_swaps_in_the_average_and_brings_the_weights_back_bitwise(
    make_model: Callable[..., OneFlow], config: Config
) -> None:
    model = make_model(config)
    ema = MovingAverage(model, 0.9)
    averages = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0).add_(1e-3)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen = []

    def look() -> None:
        seen.extend(parameter.detach().clone() for parameter in model.parameters())
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        look()
    assert all(torch.equal(*pair) for pair in zip(seen, averages.values(), strict=True))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(torch.equal(tensor, averages[name]) for name, tensor in ema.tensors.items())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def average_on_ranks(config_path: str) -> dict[str, torch.Tensor | float]:
    """What MovingAverage and gradient_norm do on this layout; velocities come from forwards, which gather shards."""
    config = load_config(config_path)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    batch = PackLoader(config, 0, 1).next_step()[0]

    def velocity() -> torch.Tensor:
        with torch.no_grad():
            return model(batch).velocity[0].clone()

    ema = MovingAverage(model, 0.9)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(model.named_parameters()):
            parameter.mul_(1.5).add_(0.01 * (index + 1))
    ema.update(model, 1)
    found: dict[str, torch.Tensor | float] = {"before": velocity()}
    with ema.applied(model):
        found["inside"] = velocity()
    found["after"] = velocity()
    reshard(model)  # as a backward does
    found |= {f"weight {name}": whole(parameter) for name, parameter in model.named_parameters()}
    found |= {f"average {name}": whole(tensor) for name, tensor in ema.tensors.items()}
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    found["norm"] = float(gradient_norm(model))
    return found


def test_average_and_norm_of_two_shards_are_those_of_one_process(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(write_config(make_config()))
    (expected,) = launcher.call(1, average_on_ranks, str(path))
    assert torch.equal(expected["before"], expected["after"])
    assert not torch.allclose(expected["before"], expected["inside"], rtol=0.01)
    for found in launcher.call(2, average_on_ranks, str(path)):
        assert found.keys() == expected.keys()
        assert torch.equal(found["before"], found["after"])
        rounding = norm_rounding([tensor for name, tensor in expected.items() if name.startswith("weight ")])
        assert found.pop("norm") == pytest.approx(expected["norm"], rel=rounding)
        for name, tensor in found.items():
            if name.startswith("weight "):
                assert torch.equal(tensor, expected[name]), name
            elif name.startswith("average "):  # a vector's product and sum may be rounded once, those of a rest twice
                atol = torch.finfo(torch.float32).eps * float(expected[name].abs().max())
                torch.testing.assert_close(tensor, expected[name], rtol=0.0, atol=atol, msg=name)
            else:  # velocities
                error = float((tensor - expected[name]).abs().max() / expected[name].abs().max())
                assert error <= 1e-5, f"{name}: {error:.1e} of the largest"
