from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample
from oneflow_dist.data.packing import pack
from oneflow_dist.model.initialization import first_value, initialize
from oneflow_dist.model.oneflow import OneFlow

CPU = torch.device("cpu")


def first_model(config: Config, seed: int = 0) -> OneFlow:
    """A model that holds nothing but NaN before its first values."""
    with torch.device("meta"):
        model = OneFlow(config)
    model.to_empty(device=CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize(model, seed, config.model.num_layers)
    return model


@pytest.mark.parametrize("conditioning", ["none", "token", "adaln"])
@pytest.mark.parametrize("image_conditioning", ["added", "adaln"])
def test_a_new_model_is_undecided(
    make_config: Callable[..., Config],
    make_noisy: Callable[..., NoisySample],
    conditioning: str,
    image_conditioning: str,
) -> None:
    """P(nothing missing) = 1/2, rate 1, all tokens alike, no velocity."""
    config = make_config(f"heads.time_conditioning={conditioning}", f"image.time_conditioning={image_conditioning}")
    batch = pack([make_noisy(np.random.default_rng(0), num_images=2)], None)
    prediction = first_model(config)(batch)
    assert prediction.zero_logit.unique().tolist() == [0.0]
    assert prediction.log_rate.unique().tolist() == [0.0]
    assert prediction.velocity.unique().tolist() == [0.0]
    torch.testing.assert_close(prediction.bag_nll, torch.full((4,), float(config.model.vocab_size)).log())


def test_a_new_model_passes_gradients_to_all_that_feeds_its_silent_outputs(
    make_config: Callable[..., Config], make_noisy: Callable[..., NoisySample]
) -> None:
    model = first_model(make_config("image.time_conditioning=adaln"))
    names = [name for name, p in model.named_parameters() if not p.any() and name.endswith("weight")]
    assert sorted(names) == sorted(
        [
            "adapter.modulation.linear.weight",
            "adapter.out.weight",
            "blocks.0.modulation.linear.weight",
            "blocks.1.modulation.linear.weight",
            "heads.modulation.linear.weight",
            "heads.rate.weight",
            "heads.zero.weight",
            "unembed.weight",
        ]
    )


def test_norms_start_at_one_and_biases_at_zero(make_config: Callable[..., Config]) -> None:
    model = first_model(make_config("image.time_conditioning=adaln"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.unique().tolist() == [1.0], name
        elif name.endswith("bias"):
            assert parameter.unique().tolist() == [0.0], name


@pytest.mark.parametrize(
    ("name", "shape", "std"),
    [
        ("blocks.0.attention.query.weight", (64, 256), 1 / 16),
        ("blocks.3.mlp.up.weight", (300, 64), 1 / 8),
        ("blocks.0.attention.out.weight", (64, 256), 1 / 16 / 8**0.5),
        ("blocks.0.mlp.down.weight", (64, 256), 1 / 16 / 8**0.5),
        ("embed.weight", (500, 64), 1 / 8),
        ("adapter.embed.weight", (64, 64), 1 / 8),
        ("image_time.out.weight", (64, 64), 1 / 8),
    ],
)
def test_projections_start_at_the_spread_of_their_inputs(name: str, shape: tuple[int, int], std: float) -> None:
    """Of four layers; what adds to the residual stream starts smaller by the root of twice their number."""
    value = first_value(name, torch.Size(shape), seed=0, num_layers=4, device=CPU)
    assert value.std().item() == pytest.approx(std, rel=0.05)
    assert value.mean().item() == pytest.approx(0.0, abs=0.05 * std)


def test_first_values_depend_on_seed_and_name_alone(make_config: Callable[..., Config]) -> None:
    torch.manual_seed(1)
    one = dict(first_model(make_config(), seed=5).named_parameters())
    torch.manual_seed(2)
    deeper = dict(first_model(make_config("model.num_layers=3"), seed=5).named_parameters())
    other = dict(first_model(make_config(), seed=6).named_parameters())
    for name in ("embed.weight", "blocks.1.attention.key.weight", "adapter.embed.weight"):
        assert torch.equal(one[name], deeper[name]), name
        assert not torch.equal(one[name], other[name]), name
    assert not torch.equal(one["blocks.0.mlp.up.weight"], one["blocks.1.mlp.up.weight"])


def test_every_parameter_gets_a_first_value(make_config: Callable[..., Config]) -> None:
    for overrides in ((), ("model.tie_embeddings=true", "heads.time_conditioning=token")):
        for name, parameter in first_model(make_config(*overrides)).named_parameters():
            assert torch.isfinite(parameter).all(), name
