"""Llama as Hugging Face stores it: which tensor is which parameter, and which key of its config which of ours."""

# Shapes: V tokens, D width.

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from oneflow_dist.config import Config, ModelConfig
from oneflow_dist.model.philox import normal_values

OWN = "oneflow."  # begins the stored names of what Llama has not
WHOLE = {
    "embed.weight": "model.embed_tokens.weight",
    "heads.norm.weight": "model.norm.weight",
    "unembed.weight": "lm_head.weight",
}
OF_BLOCK = {  # what several of Llama's products are one of ours
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
# Of the one stretching there is, in Llama 3.1, 3.2 and 3.3; see `trunk.rotary_frequency`.
STRETCHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
NEW_TOKEN_SPREAD = 0.1


def stored_names(name: str) -> tuple[str, ...]:
    """The names in a Hugging Face folder of a parameter: Llama's, or `oneflow.` and our own.

    A product that joins several of Llama's has as many.
    """
    if name in WHOLE:
        return (WHOLE[name],)
    if name.startswith("blocks."):
        _, number, part = name.removesuffix(".weight").split(".", 2)
        if part in OF_BLOCK:
            return tuple(f"model.layers.{number}.{theirs}.weight" for theirs in OF_BLOCK[part])
    return (OWN + name,)


def stored_tensors(name: str, weight: Tensor, model: ModelConfig) -> dict[str, Tensor]:
    """A parameter as it is stored, by stored name."""
    parts = split_product(name, weight, model)
    return {there: part.contiguous() for there, part in zip(stored_names(name), parts, strict=True)}


def split_product(name: str, weight: Tensor, model: ModelConfig) -> list[Tensor]:
    """The matrices that a parameter joins: query, key and value, gate and up, or itself."""
    if len(stored_names(name)) == 1:
        return [weight]
    parts = weight.unflatten(0, (_num_parts(name, model), -1)).split(_part_rows(name, model), dim=1)
    return [part.flatten(0, 1) for part in parts]


def join_product(name: str, parts: list[Tensor], model: ModelConfig) -> Tensor:
    """The inverse of `split_product`: a copy, if there are several."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.unflatten(0, (_num_parts(name, model), -1)) for part in parts], dim=1).flatten(0, 1)


def _num_parts(name: str, model: ModelConfig) -> int:
    """In how many parts the rows of a joined product lie, see `trunk.Attention` and `trunk.MLP`."""
    is_attention = name.endswith("qkv.weight")
    return model.num_kv_heads if is_attention else math.gcd(model.num_kv_heads, model.mlp_width)


def _part_rows(name: str, model: ModelConfig) -> list[int]:
    """Rows of each of Llama's products in a part."""
    if name.endswith("qkv.weight"):
        head_width = model.width // model.num_attention_heads
        return [model.num_attention_heads // model.num_kv_heads * head_width, head_width, head_width]
    return [model.mlp_width // _num_parts(name, model)] * 2


def to_llama_config(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json with which transformers reads the trunk as a LlamaForCausalLM."""
    model = config.model
    is_stretched = model.rope_scaling != 1.0
    rope = {"rope_type": "llama3", "factor": model.rope_scaling, **STRETCHED}
    return {
        "architectures": ["LlamaForCausalLM"],
        **FIXED,
        "hidden_size": model.width,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.width // model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": rope if is_stretched else None,
        "max_position_embeddings": 131072 if is_stretched else 8192,
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,  # the tokenizer's, which Llama's own folder brings
        "eos_token_id": None,
    }


def check_llama_config(table: dict[str, Any], config: Config, where: str) -> None:
    """Compare a config.json with [model], key by key.

    Raises:
        ValueError: one line with the keys to set, or with what OneFlow's trunk cannot do.
    """
    theirs = from_llama_config(table, where)
    ours = {key: getattr(config.model, key) for key in theirs}
    known_tokens = theirs.pop("vocab_size")
    differing = [f"model.{key}={_toml(value)}" for key, value in theirs.items() if ours[key] != value]
    if ours["vocab_size"] < known_tokens:
        differing.append(f"model.vocab_size={known_tokens} (or more)")
    if differing:
        raise ValueError(f"{where}: a Llama of another shape than the config's; set {', '.join(differing)}")


def from_llama_config(table: dict[str, Any], where: str) -> dict[str, Any]:
    """What a config.json says of the keys of [model].

    Raises:
        ValueError: a key is missing, or it describes what OneFlow's trunk cannot do.
    """
    known = FIXED if table.get("model_type") != "oneflow" else {**FIXED, "model_type": "oneflow"}  # of our own export
    others = [f"{key} = {table[key]!r}" for key, value in known.items() if key in table and table[key] != value]
    if others or "model_type" not in table:
        raise ValueError(
            f"{where}: not a Llama of the kind that OneFlow's trunk is: {', '.join(others) or 'no model_type'}"
        )
    try:
        found = {
            "width": table["hidden_size"],
            "num_layers": table["num_hidden_layers"],
            "num_attention_heads": table["num_attention_heads"],
            "num_kv_heads": table.get("num_key_value_heads") or table["num_attention_heads"],
            "mlp_width": table["intermediate_size"],
            "vocab_size": table["vocab_size"],
            "norm_eps": table["rms_norm_eps"],
            "tie_embeddings": table.get("tie_word_embeddings", False),
        }
    except KeyError as error:
        raise ValueError(f"{where}: no key {error}; is the file cut off?") from error
    head_width = table.get("head_dim") or found["width"] // found["num_attention_heads"]
    if head_width * found["num_attention_heads"] != found["width"]:
        raise ValueError(
            f"{where}: head_dim {head_width} x num_attention_heads {found['num_attention_heads']} is not hidden_size "
            f"{found['width']}, as in OneFlow's trunk"
        )
    return found | _rope(table, where)


def _rope(table: dict[str, Any], where: str) -> dict[str, float]:
    """`rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as 4 did."""
    rope = table.get("rope_parameters") or {
        "rope_theta": table.get("rope_theta", 10000.0),
        **(table.get("rope_scaling") or {}),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    is_ours = kind == "default" or (kind == "llama3" and all(rope.get(key) == v for key, v in STRETCHED.items()))
    if not is_ours:
        raise ValueError(f"{where}: rope {rope}; OneFlow's trunk has the default one, and llama3 with {STRETCHED}")
    return {"rope_theta": rope["rope_theta"], "rope_scaling": rope["factor"] if kind == "llama3" else 1.0}


def from_llama(
    stored: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], config: Config, where: str
) -> Iterator[tuple[str, Tensor]]:
    """First weights of a model from the tensors of a Hugging Face folder, one at a time; what is not there is left out.

    Embedding and unembedding get rows for the tokens that Llama has not. The norm before the velocity starts as Llama's
    last: it reads the same stream, whose few loud channels that norm has learned to quieten.

    Args:
        stored: by stored name; they may be memory-mapped, only grown and joined ones are copied.
        shapes: of the parameters that are wanted, by name.

    Yields:
        Name and value, in the dtype it is stored in.

    Raises:
        ValueError: a tensor of Llama's is missing, or of another shape.
    """
    missing = [there for name in shapes for there in stored_names(name) if there not in stored]
    lost = [there for there in missing if not there.startswith(OWN)]
    if lost:
        raise ValueError(f"{where}: lacks {len(lost)} tensors of Llama, as {lost[0]}; copy the folder again")
    last_norm = stored.get(WHOLE["heads.norm.weight"])
    for name, shape in shapes.items():
        there = stored_names(name)
        if len(there) > 1:
            yield name, _joined(name, {part: stored[part] for part in there}, config.model, where)
        elif there[0] in stored:
            yield name, fit_tokens(name, stored[there[0]], shape, config.run.seed, f"{where}: {there[0]}")
        elif re.fullmatch(r"adapters\..+\.norm\.weight", name) and last_norm is not None and last_norm.shape == shape:
            yield name, last_norm


def _joined(name: str, parts: dict[str, Tensor], model: ModelConfig, where: str) -> Tensor:
    """What `stored_tensors` cuts, whole again: a copy.

    Raises:
        ValueError: one of them has another shape than the config says.
    """
    rows = [_num_parts(name, model) * size for size in _part_rows(name, model)]
    for (there, part), size in zip(parts.items(), rows, strict=True):
        if part.shape != (size, model.width):
            raise ValueError(
                f"{where}: {there} is {list(part.shape)}, but {[size, model.width]} in this config; take the config it "
                "is of"
            )
    return join_product(name, list(parts.values()), model)


def fit_tokens(name: str, tensor: Tensor, shape: torch.Size, seed: int, where: str) -> Tensor:
    """A stored tensor as a parameter of that shape, grown where its rows are tokens.

    Raises:
        ValueError: it has another shape.
    """
    is_of_tokens = name in ("embed.weight", "unembed.weight")
    if is_of_tokens and tensor.ndim == 2 and tensor.shape[1] == shape[1] and len(tensor) < shape[0]:
        return grow_tokens(tensor, shape[0], seed, name)
    if tensor.shape != shape:
        raise ValueError(f"{where} is {list(tensor.shape)}, but {name} is {list(shape)}; take the config it is of")
    return tensor


def grow_tokens(weight: Float[Tensor, "v D"], vocab_size: int, seed: int, name: str) -> Float[Tensor, "V D"]:
    """Rows for more tokens: the mean of the known rows, and a tenth of their spread as noise.

    The mean keeps a new token about as likely as an average one, so that it takes next to nothing from those that
    Llama knows, where a row of a fresh model's size could be the likeliest of all. The noise tells new tokens apart.
    """
    known = weight.float()
    rows, columns = torch.arange(len(weight), vocab_size), torch.arange(weight.shape[1])
    noise = normal_values(seed, f"{name}/new tokens", rows, columns)
    grown = known.mean(0) + NEW_TOKEN_SPREAD * known.std(0) * noise
    return torch.cat([weight, grown.to(weight.dtype)])


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
