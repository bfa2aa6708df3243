from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oneflow_dist.config import Config, LoraConfig, OptimGroup, load_config
from oneflow_dist.containers import Counts, PackedPieces
from oneflow_dist.model.flops import (
    describe,
    describe_parameters,
    flops_by_part,
    num_parameters,
    step_flops,
    training_flops,
)
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.sharding import freeze
from tests.modalities import overrides, packed


@pytest.fixture(scope="module")
def llama_1b(root: Path) -> Config:
    """The trunk of Llama-3.2-1B."""
    shape = {
        "width": 2048,
        "num_layers": 16,
        "num_attention_heads": 32,
        "num_kv_heads": 8,
        "mlp_width": 8192,
        "vocab_size": 128256,
    }
    return load_config(root / "configs" / "quickstart.toml", [f"model.{key}={value}" for key, value in shape.items()])


def autoregressive(config: Config, length: int) -> float:
    return training_flops(config, length, length**2 / 2, length)


def by_insertion(config: Config, length: int, head_slots: float) -> float:
    """Text alone, tau ~ U[0, 1]: E n = L/2 rows, E n^2 = L (2 L + 1) / 6 pairs."""
    return training_flops(config, length / 2, length * (2 * length + 1) / 6, head_slots)


@pytest.mark.parametrize(("length", "ratio"), [(512, 0.503), (2048, 0.510), (8192, 0.534)])
def test_a_step_of_insertion_costs_half_of_an_autoregressive_one(llama_1b: Config, length: int, ratio: float) -> None:
    actual = by_insertion(llama_1b, length, length / 2) / autoregressive(llama_1b, length)
    assert actual == pytest.approx(ratio, abs=0.0005)


def test_logits_of_filled_slots_alone_save_more(llama_1b: Config) -> None:
    assert by_insertion(llama_1b, 512, 512 / 6) / autoregressive(llama_1b, 512) == pytest.approx(0.433, abs=0.0005)


def test_flops_of_a_row_are_six_times_the_weights_it_meets(llama_1b: Config) -> None:
    """Blocks of Llama-3.2-1B: 973 million weights without norms; its unembedding 263 million."""
    with torch.device("meta"):
        model = OneFlow(llama_1b)
    block_weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    assert block_weights == 973_078_528
    assert training_flops(llama_1b, 1, 0, 0) == 6 * block_weights
    assert training_flops(llama_1b, 0, 0, 1) == 6 * model.embed.weight.numel() == 6 * 2048 * 128256


def test_flops_of_a_pair_are_two_products_of_the_width_in_every_layer(llama_1b: Config) -> None:
    """Scores and weighted values: 4 * width forward, two and a half times that backward."""
    assert training_flops(llama_1b, 0, 1, 0) == 3.5 * 4 * 2048 * 16


def test_a_step_counts_what_is_there_and_not_the_padding(config: Config) -> None:
    counts = replace(Counts.zeros(1), rows=100, attention_pairs=900, filled_slots=7, patches=(40,))
    expected = training_flops(config, 100, 900, 7, (40,))
    assert step_flops(counts, config) == expected > training_flops(config, 100, 900, 7)
    rest = {"open_slots": 80, "text_tokens": 90, "sequences": 11, "bag_tokens": 30, "moving_elements": (5,)}
    assert step_flops(replace(counts, padded_rows=4096, **rest), config) == expected


ADAPTERS = {
    "linear": {},
    "linear, modulated": {"time_conditioning": "adaln"},
    "two layers": {"adapter": "two_layer", "adapter_width": 20},
    "U-Net of pictures": {"adapter": "unet", "adapter_width": 4, "time_conditioning": "adaln"},
    "U-Net of sounds": {"adapter": "unet", "adapter_width": 6, "shape": [12], "patch": [3]},
    "U-Net of videos": {"adapter": "unet", "adapter_width": 3, "shape": [2, 4, 4], "patch": [2, 2, 1]},
    "given": {"adapter": "two_layer", "adapter_width": 20, "understanding": "features", "loss_weight": 0.0},
}


class Way(nn.Module):
    """Of patches through their adapter, as if there were no trunk between."""

    def __init__(self, adapter: Any):
        super().__init__()
        self.adapter = adapter

    def forward(self, pieces: PackedPieces) -> Tensor:
        encoded = self.adapter.encode(pieces)
        velocity = self.adapter.decode(encoded.rows, pieces, encoded, None)
        return velocity if velocity.shape[1] else encoded.rows


@pytest.mark.parametrize("keys", ADAPTERS.values(), ids=ADAPTERS)
def test_flops_of_adapters_are_those_of_the_products_that_torch_counts(
    keys: dict[str, object], make_config: Callable[..., Config]
) -> None:
    """Of a pack of two kinds, on patches whose gradient is asked for, as every product's is in the formula."""
    own = {"channels": 3, "shape": [4, 4], "patch": [2, 2], **keys}
    config = make_config(*overrides("kind", **own))
    modality = config.modality["kind"]
    sides = {1: [(3, 1, 1), (2, 1, 1)], 2: [(1, 2, 3), (1, 1, 1)], 3: [(1, 2, 3), (2, 1, 1)]}[modality.dimensions]
    pieces = packed(sides, modality.patch_elements)
    pieces.patches.requires_grad_()
    way = Way(OneFlow(config).adapters["kind"])
    with FlopCounterMode(display=False) as counter:
        way(pieces).sum().backward()
    counts = counter.get_flop_counts()
    products = [
        name
        for name, layer in way.named_modules()
        if isinstance(layer, nn.Linear) and not {"time", "modulation", "text_modulation"} & set(name.split("."))
    ]
    counted = sum(sum(counts[f"Way.{name}"].values()) for name in products)
    assert flops_by_part(config, 0, 0, 0, (0, len(pieces.patches)))["adapters"] == counted > 0
    assert len(products) == {"linear": 1, "two_layer": 2, "unet": 16}[modality.adapter] * (
        2 if modality.is_target and modality.adapter != "unet" else 1
    )


def test_parameters_are_counted_once(make_config: Callable[..., Config]) -> None:
    for tie in ("true", "false"):
        model = OneFlow(make_config(f"model.tie_embeddings={tie}"))
        assert num_parameters(model) == sum({id(p): p.numel() for p in model.parameters()}.values())


def test_a_description_names_every_part_and_its_size(config: Config) -> None:
    model = OneFlow(config)
    lines = describe(model, config).splitlines()
    sizes = {
        line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines[: 1 + len(list(model.children()))]
    }
    total = sizes.pop("parameters")
    assert total == num_parameters(model)
    assert sizes == {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sum(sizes.values()) == total
    assert "rows per step         2,048  (1 packs)" in lines
    assert "384 pieces (image) of 4 rows" in lines[-1]


def test_frozen_weights_have_no_gradient_and_a_lora_its_own_products(llama_1b: Config) -> None:
    """Against the shapes that torch makes of it: forward, gradient of the input, and of what is trained."""
    half = OptimGroup(names=("blocks.[02468].*", "blocks.1[024].*", "embed.weight"), frozen=True)
    frozen = replace(llama_1b, optim=replace(llama_1b.optim, group=(half,)))
    weights = 973_078_528
    assert training_flops(frozen, 1, 0, 0) == 6 * weights / 2 + 4 * weights / 2
    assert training_flops(frozen, 0, 0, 1) == 6 * 2048 * 128256  # the unembedding of its own is trained
    lora = replace(llama_1b, lora=LoraConfig(rank=16))
    with torch.device("meta"):
        model = OneFlow(lora)
    beside = sum(p.numel() for name, p in model.named_parameters() if ".lora." in name)
    assert training_flops(lora, 1, 0, 0) == 4 * weights + 6 * beside


def test_a_description_tells_what_is_trained(make_config: Callable[..., Config]) -> None:
    config = make_config("lora.rank=2", 'optim.group=[{names=["embed*"], frozen=true}]')
    model = OneFlow(config)
    freeze(model, config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{num_parameters(model):,} parameters, {trained:,} of them" in describe_parameters(model)
    text = describe(model, config)
    of_blocks = sum(p.numel() for p in model.blocks.parameters() if p.requires_grad)
    assert f"{of_blocks:,} trained" in text
    assert "frozen" in next(line for line in text.splitlines() if "embed" in line)
