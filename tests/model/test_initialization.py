from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Bags, NoisySample
from oneflow_dist.data.packing import pack
from oneflow_dist.model.initialization import all_indices, first_value, initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.sharding import cut_weights
from tests.launching import Launcher
from tests.modalities import SOUND, UNET, VISION, noisy_pieces

CPU = torch.device("cpu")
MLP_WIDTH = 51  # of which no two ranks hold alike many
LAYOUTS = [(1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)]  # ranks along replicate, shard, tensor


BLOCKS = ("elements_in", "patches_in", "patches_out", "elements_out")


def text_of(length: int) -> NoisySample:
    """As many tokens, with nothing missing."""
    nothing = np.zeros(0, dtype=np.int64)
    return NoisySample(
        key="test/text",
        tokens=np.arange(length),
        is_given=np.arange(length) == 0,
        is_open=np.ones(length, dtype=bool),
        bags=Bags.of_tokens(nothing, nothing, length),
        pieces=(),
        text_time=0.5,
    )


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
    """P(nothing missing) = 1/2, rate 1, all tokens alike, no velocity.

    Where heads know the time, something is missing the less likely the later it is.
    """
    config = make_config(
        f"heads.time_conditioning={conditioning}", f"modality.image.time_conditioning={image_conditioning}"
    )
    batch = pack([make_noisy(np.random.default_rng(0), num_images=2)], None)
    prediction = first_model(config)(batch)
    left = 1.0 - batch.text_time.item()
    odds = 1.0 if conditioning == "none" else 1.0 + left + left**2  # that something is missing
    assert prediction.zero_logit.unique().tolist() == [pytest.approx(-math.log(odds))]
    assert prediction.log_rate.unique().tolist() == [0.0]
    assert prediction.velocity[0].unique().tolist() == [0.0]
    assert prediction.bag_loss.item() == pytest.approx(4 * math.log(config.model.vocab_size))  # of four bag tokens


def test_a_new_model_passes_gradients_to_all_that_feeds_its_silent_outputs(
    make_config: Callable[..., Config], make_noisy: Callable[..., NoisySample]
) -> None:
    model = first_model(make_config("modality.image.time_conditioning=adaln"))
    names = [name for name, p in model.named_parameters() if not p.any() and name.endswith("weight")]
    assert sorted(names) == sorted(
        [
            "adapters.image.modulation.linear.weight",
            "adapters.image.text_modulation.linear.weight",
            "adapters.image.velocity.last.weight",
            "blocks.0.modulation.linear.weight",
            "blocks.1.modulation.linear.weight",
            "heads.modulation.linear.weight",
            "heads.rate.weight",
            "heads.zero.weight",
            "unembed.weight",
        ]
    )


def test_every_kind_of_adapter_starts_silent_and_passes_gradients_on(make_config: Callable[..., Config]) -> None:
    """Without a velocity, and blocks of the U-Net as identities; all that feeds these outputs is not zero."""
    sound = (*SOUND, "modality.sound.adapter=two_layer", "modality.sound.adapter_width=20")
    config = make_config(*UNET, *sound, *VISION)
    model = first_model(config)
    blocks = [f"unet.{part}.{layer}" for part in BLOCKS for layer in ("last", "modulation.linear")]
    silent = {f"adapters.image.{name}.weight" for name in ("unet.last", *blocks)}
    silent |= {f"adapters.{kind}.text_modulation.linear.weight" for kind in ("image", "sound")}
    silent.add("adapters.sound.velocity.last.weight")
    adapters = {name: p for name, p in model.named_parameters() if name.startswith("adapters.")}
    assert {name for name, p in adapters.items() if not p.any() and name.endswith("weight")} == silent
    rng = np.random.default_rng(0)
    pieces = [noisy_pieces(rng, modality, [3 * n + 1]) for n, modality in enumerate(config.modality.values())]
    prediction = model(pack([replace(text_of(12), pieces=tuple(pieces))], None))
    assert [v.unique().tolist() for v in prediction.velocity] == [[0.0], [0.0], []]


def test_norms_start_at_one_and_biases_at_zero(make_config: Callable[..., Config]) -> None:
    model = first_model(make_config("modality.image.time_conditioning=adaln"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.unique().tolist() == [1.0], name
        elif name.endswith("bias"):
            assert parameter.unique().tolist() == [0.0], name


@pytest.mark.parametrize(
    ("name", "shape", "std"),
    [
        ("blocks.0.attention.qkv.weight", (64, 256), 1 / 16),
        ("blocks.3.mlp.gate_up.weight", (300, 64), 1 / 8),
        ("blocks.0.attention.out.weight", (64, 256), 1 / 16 / 8**0.5),
        ("blocks.0.mlp.down.weight", (64, 256), 1 / 16 / 8**0.5),
        ("embed.weight", (500, 64), 1 / 8),
        ("adapters.image.embed.last.weight", (64, 64), 1 / 8),
        ("adapters.image.time.out.weight", (64, 64), 1 / 8),
    ],
)
def test_projections_start_at_the_spread_of_their_inputs(name: str, shape: tuple[int, int], std: float) -> None:
    """Of four layers; what adds to the residual stream starts smaller by the root of twice their number."""
    value = first_value(name, torch.Size(shape), 0, 4, all_indices(torch.Size(shape)))
    assert value.std().item() == pytest.approx(std, rel=0.05)
    assert value.mean().item() == pytest.approx(0.0, abs=0.05 * std)


def test_first_values_depend_on_seed_and_name_alone(make_config: Callable[..., Config]) -> None:
    torch.manual_seed(1)
    one = dict(first_model(make_config(), seed=5).named_parameters())
    torch.manual_seed(2)
    deeper = dict(first_model(make_config("model.num_layers=3"), seed=5).named_parameters())
    other = dict(first_model(make_config(), seed=6).named_parameters())
    for name in ("embed.weight", "blocks.1.attention.qkv.weight", "adapters.image.embed.last.weight"):
        assert torch.equal(one[name], deeper[name]), name
        assert not torch.equal(one[name], other[name]), name
    assert not torch.equal(one["blocks.0.mlp.gate_up.weight"], one["blocks.1.mlp.gate_up.weight"])


def test_every_parameter_gets_a_first_value(make_config: Callable[..., Config]) -> None:
    for overrides in ((), ("model.tie_embeddings=true", "heads.time_conditioning=token")):
        for name, parameter in first_model(make_config(*overrides)).named_parameters():
            assert torch.isfinite(parameter).all(), name


def values_on_ranks(config_path: str) -> list[tuple[int, list[str], dict[str, torch.Tensor]]]:
    """In each layout: how many elements this rank drew, the placements of two projections, all values as wholes."""
    config = load_config(config_path)
    found = []
    for layout in LAYOUTS:
        mesh = init_device_mesh("cpu", layout, mesh_dim_names=("replicate", "shard", "tensor"))
        with torch.device("meta"):
            model = OneFlow(config)
        cut_weights(model, mesh["tensor"])
        fully_shard(model, mesh=mesh["replicate", "shard"])
        model.to_empty(device=CPU)
        initialize(model, 5, config.model.num_layers)
        parameters = dict(model.named_parameters())
        drawn = sum(p.to_local().numel() for p in parameters.values())
        names = ("blocks.0.mlp.gate_up.weight", "blocks.0.mlp.down.weight")
        placements = [str(parameters[name].placements) for name in names]
        found.append((drawn, placements, {name: p.full_tensor() for name, p in parameters.items()}))
    return found


def test_first_values_of_every_layout_are_those_of_one_process(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Also where tensor and shard cut the same dim, and unevenly."""
    config = make_config(f"model.mlp_width={MLP_WIDTH}")
    (tmp_path / "config.toml").write_text(write_config(config))
    expected = dict(first_model(config, seed=5).named_parameters())
    total = sum(parameter.numel() for parameter in expected.values())
    ranks = launcher.call(4, values_on_ranks, str(tmp_path / "config.toml"))
    for layout, of_ranks in zip(LAYOUTS, zip(*ranks, strict=True), strict=True):
        for drawn, placements, values in of_ranks:
            assert drawn < 1.1 * total / layout[1]
            assert ["_StridedShard" in placement for placement in placements] == [layout[2] > 1, False]
            assert values.keys() == expected.keys()
            for name, value in values.items():
                assert torch.equal(value, expected[name]), f"{layout}: {name}"
