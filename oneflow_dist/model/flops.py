"""How much a model computes: parameters, FLOPs of a step, and a description for people."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import nn

from oneflow_dist.config import Config, ModelConfig, group_of
from oneflow_dist.containers import Counts
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.model.adapters import Adapter, GivenAdapter

FROZEN_SAVES = 16  # bytes of a parameter in float32: gradient, two moments, average
ON_ELEMENTS = ("unet.enter", "unet.elements", "unet.join_elements", "unet.last")  # layers that see every element


def flops_by_part(
    config: Config, rows: float, attention_pairs: float, head_slots: float, patches: Sequence[float] = ()
) -> dict[str, float]:
    """FLOPs of a forward and backward pass, by the part of the network.

        attention projections   3 * 2 * weights of query, key, value and out * rows
        attention pairs         3.5 * 4 * attention width * layers * attention_pairs
        mlp                     3 * 2 * weights of gate, up and down * rows
        logits                  3 * 2 * width * vocabulary * head_slots
        adapters                3 * 2 * weights that a patch meets * patches

    Matrix products count forward once and backward twice, those of frozen weights once; attention backward 2.5 times,
    as flash attention computes scores again. Norms, time embeddings and frozen encoders are left out. Products beside
    which a Lora learns count with its own.

    Args:
        rows: of the trunk.
        patches: of each modality; without them adapters are left out.
        attention_pairs: pairs (query, key): the sum of squared sequence lengths if every row sees its sequence.
        head_slots: slots whose token logits are computed.
    """
    model = config.model
    unembedding = "embed.weight" if model.tie_embeddings else "unembed.weight"
    modalities = config.modality.values()
    of_patches = [weights_of_patch(m, model.width) * count for m, count in zip(modalities, patches, strict=False)]
    return {
        "attention projections": sum(_product_flops(config, name) for name in ("attention.qkv", "attention.out"))
        * rows,
        "attention pairs": 14.0 * model.width * model.num_layers * attention_pairs,
        "mlp": sum(_product_flops(config, name) for name in ("mlp.gate_up", "mlp.down")) * rows,
        "logits": _passes(config, unembedding) * 2 * model.width * model.vocab_size * head_slots,
        **({"adapters": 6.0 * sum(of_patches)} if patches else {}),
    }


def _passes(config: Config, name: str) -> float:
    """How often a product is made, backward too."""
    return 2.0 if group_of(name, config.optim).frozen else 3.0


def _product_flops(config: Config, name: str) -> float:
    """Of a product of the trunk over all layers, for each row."""
    model, lora = config.model, config.lora
    outputs, inputs = product_shape(name, model)
    has_lora = lora.rank > 0 and name in lora.products
    weights = (f"blocks.{number}.{name}.weight" for number in range(model.num_layers))
    passes = sum(2.0 if has_lora else _passes(config, weight) for weight in weights)
    beside = 3.0 * model.num_layers * lora.rank * (inputs + outputs) if has_lora else 0.0
    return 2.0 * (passes * inputs * outputs + beside)


def product_shape(name: str, model: ModelConfig) -> tuple[int, int]:
    """Outputs and inputs of a product of the trunk, named as in lora.products."""
    head_width = model.width // model.num_attention_heads
    return {
        "attention.qkv": ((model.num_attention_heads + 2 * model.num_kv_heads) * head_width, model.width),
        "attention.out": (model.width, model.width),
        "mlp.gate_up": (2 * model.mlp_width, model.width),
        "mlp.down": (model.width, model.mlp_width),
    }[name]


@functools.cache
def weights_of_patch(modality: ModalityConfig, width: int) -> int:
    """Multiplications of a patch's way into the trunk and out of it: of its elements each counts."""
    num_elements = math.prod(modality.patch)
    with torch.device("meta"):
        adapter = Adapter(width, modality, 0.0) if modality.is_target else GivenAdapter(width, modality)
    total = 0
    for name, layer in adapter.named_modules():
        if isinstance(layer, nn.Linear) and not name.startswith("time.") and "modulation" not in name:
            total += layer.weight.numel() * (num_elements if name.startswith(ON_ELEMENTS) else 1)
    return total


def training_flops(
    config: Config, rows: float, attention_pairs: float, head_slots: float, patches: Sequence[float] = ()
) -> float:
    """All of `flops_by_part`."""
    return sum(flops_by_part(config, rows, attention_pairs, head_slots, patches).values())


def step_flops(counts: Counts, config: Config) -> float:
    """FLOPs of a training step: rows and slots that hold something, padding not counted."""
    return training_flops(config, counts.rows, counts.attention_pairs, counts.filled_slots, counts.patches)


def num_parameters(model: nn.Module) -> int:
    """All parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def num_trained(model: nn.Module) -> int:
    """Those that are not frozen."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe_parameters(model: nn.Module) -> str:
    """How many, and how many of them are trained."""
    count, trained = num_parameters(model), num_trained(model)
    return f"{count:,} parameters" + (f", {trained:,} of them trained" if trained < count else "")


def describe_step(config: Config) -> str:
    """The size of a step in few words."""
    packs, rows = config.data.packs_per_step, config.data.rows_per_pack
    return f"{packs * rows:,} rows a step in {packs} pack{'s' * (packs != 1)}"


def describe(model: nn.Module, config: Config) -> str:
    """Parameters by part, and the sizes of a packed batch."""
    lines = [f"parameters {num_parameters(model):>16,}"]
    for name, part in model.named_children():
        count, trained = num_parameters(part), num_trained(part)
        note = "" if trained == count else f"  {trained:,} trained" if trained else "  frozen"
        lines.append(f"  {name:<12} {count:>12,}{note}")
    frozen = num_parameters(model) - num_trained(model)
    if frozen:
        saved = frozen * FROZEN_SAVES / 1e9
        lines.append(f"  what is frozen: {saved:,.3g} GB of gradients, moments and average are saved, over all ranks")
    data = config.data
    lines.append(f"rows per step {data.packs_per_step * data.rows_per_pack:>13,}  ({data.packs_per_step} packs)")
    lines.append(
        f"  of {data.rows_per_pack:,} rows, {data.tokens_per_pack:,} tokens, {data.bag_tokens_per_pack:,} missing,"
    )
    pieces = [f"{m.per_pack:,} pieces ({name}) of {m.num_rows} rows" for name, m in config.modality.items()]
    lines.append(f"  {', '.join([*pieces, f'{data.sequences_per_pack:,} samples'])}")
    return "\n".join(lines)
