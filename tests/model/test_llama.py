from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_dist.config import Config, load_config
from oneflow_dist.model.llama import (
    OWN,
    check_llama_config,
    from_llama,
    from_llama_config,
    grow_tokens,
    join_product,
    split_product,
    stored_names,
    stored_tensors,
    to_llama_config,
)
from oneflow_dist.model.oneflow import OneFlow
from tests.messages import naming
from tests.modalities import SOUND, UNET

OF_MODEL = ("width", "num_layers", "num_attention_heads", "num_kv_heads", "mlp_width", "vocab_size", "norm_eps")
READS_THE_STREAM = ("adapters.image.unet.norm.weight", "adapters.sound.norm.weight")  # as the norm before the heads
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}


def table_of(config: Config) -> dict[str, Any]:
    return to_llama_config(config, torch.float32)


def shapes_of(config: Config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in OneFlow(config).named_parameters()}


def llama_tensors(config: Config) -> dict[str, Tensor]:
    """What a plain Llama of the config's shape stores."""
    return {name: tensor for name, tensor in as_stored(config).items() if not name.startswith(OWN)}


def as_stored(config: Config) -> dict[str, Tensor]:
    """Any values of all parameters, as a folder has them."""
    generator = torch.Generator().manual_seed(0)
    stored = {}
    for name, shape in shapes_of(config).items():
        stored |= stored_tensors(name, torch.randn(shape, generator=generator), config.model)
    return stored


@pytest.fixture(params=["true", "false"], ids=["tied", "untied"])
def any_config(request: pytest.FixtureRequest, make_config: Callable[..., Config]) -> Config:
    """Images by a U-Net, in modulated blocks, and sounds."""
    return make_config(f"model.tie_embeddings={request.param}", *UNET, *SOUND)


def test_stored_names_and_shapes_are_those_of_transformers(any_config: Config) -> None:
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**table_of(any_config)))
    theirs = {name: parameter.shape for name, parameter in llama.named_parameters()}
    ours = {name: tensor.shape for name, tensor in as_stored(any_config).items()}
    assert {name: shape for name, shape in ours.items() if not name.startswith(OWN)} == theirs
    own = {name.removeprefix(OWN): shape for name, shape in ours.items() if name.startswith(OWN)}
    assert own == {name: shape for name, shape in shapes_of(any_config).items() if name in own}
    assert len(ours) == sum(len(stored_names(name)) for name in shapes_of(any_config))  # no two share a name
    assert len(ours) == len(theirs) + len(own)
    assert "blocks.1.modulation.linear.weight" in own


@pytest.mark.parametrize("scaling", [1.0, 8.0, 32.0])
def test_a_config_comes_back_from_its_table(make_config: Callable[..., Config], scaling: float) -> None:
    config = make_config(f"model.rope_scaling={scaling}")
    found = from_llama_config(table_of(config), "config.json")
    assert found == {key: getattr(config.model, key) for key in found}
    assert set(found) == {*OF_MODEL, "tie_embeddings", "rope_theta", "rope_scaling"}
    check_llama_config(table_of(config), config, "config.json")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "oneflow_1b",
            {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
            | {"tie_word_embeddings": True, "rope_scaling": {**ROPE, "factor": 32.0}},
        ),
        (
            "oneflow_3b",
            {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128}
            | {"num_attention_heads": 24, "tie_word_embeddings": True, "rope_scaling": {**ROPE, "factor": 32.0}},
        ),
        (
            "oneflow_8b",
            {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
            | {"tie_word_embeddings": False, "rope_scaling": ROPE},
        ),
    ],
)
def test_configs_fit_the_published_llamas(name: str, published: dict[str, Any], root: Path) -> None:
    """Llama 3.2 1B and 3B and Llama 3.1 8B, by the config.json that their folders have."""
    shared = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "num_attention_heads": 32}
    shared |= {"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256}
    config = load_config(root / "configs" / f"{name}.toml")
    check_llama_config(shared | published, config, "config.json")
    table = table_of(config)
    assert {key: table[key] for key in shared | published if key in table} == shared | published


def test_the_table_that_transformers_writes_is_read(make_config: Callable[..., Config]) -> None:
    config = make_config("model.rope_scaling=8.0")
    check_llama_config(LlamaConfig(**table_of(config)).to_dict(), config, "config.json")


def test_tables_of_older_llamas_are_read(config: Config) -> None:
    """Without the keys that came later; with the older name of the kind of rope."""
    table = table_of(config)
    for key in ("head_dim", "num_key_value_heads", "tie_word_embeddings", "rope_scaling", "attention_bias", "mlp_bias"):
        del table[key]
    found = from_llama_config(table, "config.json")
    assert found["num_kv_heads"] == config.model.num_attention_heads
    assert (found["tie_embeddings"], found["rope_scaling"]) == (False, 1.0)
    older = ROPE | {"type": "llama3"}
    del older["rope_type"]
    assert from_llama_config(table | {"rope_scaling": older}, "config.json")["rope_scaling"] == 8.0


def test_the_keys_to_set_are_named_as_they_are_written(make_config: Callable[..., Config]) -> None:
    table = table_of(make_config("model.rope_scaling=32.0", "model.tie_embeddings=true", "model.vocab_size=600"))
    other = make_config("model.num_layers=3", "model.norm_eps=1e-6")
    settings = ("model.num_layers=2", "model.norm_eps=1e-05", "model.tie_embeddings=true", "model.rope_scaling=32.0")
    with pytest.raises(ValueError, match=naming("llama/config.json", *settings, "model.vocab_size=600")):
        check_llama_config(table, other, "llama/config.json")


def test_a_larger_vocabulary_fits(make_config: Callable[..., Config]) -> None:
    check_llama_config(table_of(make_config()), make_config("model.vocab_size=600"), "config.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, ("model_type", "'mistral'")),
        ({"attention_bias": True, "hidden_act": "gelu"}, ("hidden_act", "'gelu'", "attention_bias", True)),
        ({"head_dim": 16}, ("head_dim", 16, "num_attention_heads", 4, "hidden_size", 32)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ("'rope_type'", "'linear'", "'factor'", 2.0)),
        ({"rope_scaling": ROPE | {"low_freq_factor": 2.0}}, ("'low_freq_factor'", 2.0)),
    ],
)
def test_what_the_trunk_cannot_do_is_refused(change: dict[str, Any], named: tuple[object, ...], config: Config) -> None:
    with pytest.raises(ValueError, match=naming("llama/config.json", *named)):
        from_llama_config(table_of(config) | change, "llama/config.json")


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "rms_norm_eps"])
def test_a_table_without_a_needed_key_is_refused(key: str, config: Config) -> None:
    table = table_of(config)
    del table[key]
    with pytest.raises(ValueError, match=naming("config.json", key)):
        from_llama_config(table, "config.json")


def test_first_weights_are_llamas_and_for_the_rest_there_are_none(any_config: Config) -> None:
    stored, shapes = llama_tensors(any_config), shapes_of(any_config)
    tensors = dict(from_llama(stored, shapes, any_config, "llama"))
    assert all(tensor.shape == shapes[name] for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if name in READS_THE_STREAM:
            assert tensor is stored["model.norm.weight"]
        elif len(there := stored_names(name)) == 1:
            assert tensor is stored[there[0]]  # not even copied
        else:
            parts = stored_tensors(name, tensor, any_config.model)
            assert parts.keys() == set(there)
            assert all(torch.equal(part, stored[n]) for n, part in parts.items())
    taken = [there for name in tensors for there in stored_names(name)]
    assert len(taken) == len(stored) + len(READS_THE_STREAM)
    new = " ".join(shapes.keys() - tensors.keys())
    assert all(part in new for part in ("image.unet.last", "sound.velocity.last", "image.time", "heads.zero"))


def test_a_folder_of_our_own_brings_all_of_its_weights(any_config: Config) -> None:
    stored, shapes = as_stored(any_config), shapes_of(any_config)
    tensors = dict(from_llama(stored, shapes, any_config, "own"))
    assert tensors.keys() == shapes.keys()
    for name, tensor in tensors.items():
        for there, part in stored_tensors(name, tensor, any_config.model).items():
            assert torch.equal(part, stored[there]), there


def test_a_product_is_cut_into_its_matrices_and_joined_again(config: Config) -> None:
    for name, shape in shapes_of(config).items():
        weight = torch.randn(shape)
        parts = split_product(name, weight, config.model)
        assert torch.equal(join_product(name, parts, config.model), weight)
        assert len(parts) == (3 if "qkv" in name else 2 if "gate_up" in name else 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("drop", (1, "model.layers.1.mlp.up_proj.weight")),
        ("cut", ("model.layers.1.mlp.up_proj.weight", "[48, 31]", "[48, 32]")),
        ("narrow", ("model.embed_tokens.weight", "[512, 31]", "embed.weight", "[512, 32]")),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: str, named: tuple[object, ...], config: Config) -> None:
    stored, name = llama_tensors(config), "model.layers.1.mlp.up_proj.weight"
    match change:
        case "drop":
            del stored[name]
        case "cut":
            stored[name] = stored[name][:, 1:]
        case "narrow":
            stored["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"][:, 1:]
    with pytest.raises(ValueError, match=naming("llama", *named)):
        list(from_llama(stored, shapes_of(config), config, "llama"))


def test_new_tokens_lie_near_the_mean_of_the_known_ones_and_differ() -> None:
    weight = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2.0, 64) + 3.0
    grown = grow_tokens(weight, 500, seed=0, name="embed.weight")
    assert torch.equal(grown[:400], weight)
    distance = (grown[400:] - weight.mean(0)) / weight.std(0)  # in the spread of each column
    assert distance.std() == pytest.approx(0.1, rel=0.05)
    assert abs(distance.mean()) < 0.01
    assert torch.cdist(grown[400:], grown[400:]).fill_diagonal_(1.0).min() > 0.1
    half = grow_tokens(weight.bfloat16(), 500, seed=0, name="embed.weight")
    assert half.dtype == torch.bfloat16
    assert torch.equal(grow_tokens(weight, 600, seed=0, name="embed.weight")[:500], grown)


def test_embedding_and_unembedding_grow_to_the_configs_vocabulary(make_config: Callable[..., Config]) -> None:
    stored, config = llama_tensors(make_config()), make_config("model.vocab_size=600")
    tensors = dict(from_llama(stored, shapes_of(config), config, "llama"))
    for name in ("embed.weight", "unembed.weight"):
        assert tensors[name].shape == (600, 32)
        assert torch.equal(tensors[name][:512], stored[stored_names(name)[0]])
    assert not torch.equal(tensors["embed.weight"][512:], tensors["unembed.weight"][512:])
