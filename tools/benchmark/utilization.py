"""MFU and HFU: the FLOPs that a model needs, and those that a device computes, as shares of what it could compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts
from oneflow_dist.model.flops import flops_by_part, step_flops
from oneflow_dist.planning.gpus import peak_flops
from tools.benchmark.device import TERA, large_products
from tools.benchmark.report import MODEL_FLOPS

CONVENTION = (
    f"{MODEL_FLOPS} Logits exist where a token is missing only. HFU counts what activation checkpointing computes "
    "again as well; both are shares of the same peak of all ranks' devices, for float8 too that of bfloat16."
)


@dataclass(frozen=True, slots=True)
class Peak:
    """FLOP/s of one device."""

    flops: float
    source: str  # who says so


def find_peak(device: torch.device) -> Peak:
    """What the vendor says; of a device that is not in the table of planning/gpus.py, what a large product reaches."""
    vendor = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if vendor is not None:
        return Peak(vendor, "the vendor's dense bfloat16")
    best = max(large_products(device), key=lambda line: float(line.get("tflops", 0.0)))
    return Peak(TERA * best["tflops"], f"measured: {best['name']}")


def utilization(flops: float, seconds: float, peak: Peak, num_devices: int = 1) -> float:
    """The share that `flops` in `seconds` are of what the devices could compute."""
    return flops / (seconds * peak.flops * num_devices)


def hardware_flops(counts: Counts, config: Config) -> float:
    """FLOPs of a step with those that activation checkpointing computes again.

    "full": all of a block forward but `down`, whose result nothing backward reads; "selective": query, value and gate.
    docs/memory.md; `oneflow_dist/parallel/activations.py`.
    """
    model_flops, pairs = step_flops(counts, config), counts.attention_pairs
    parts = flops_by_part(config, counts.rows, pairs, counts.filled_slots)
    projections, mlp, attention = parts["attention projections"] / 3, parts["mlp"] / 3, parts["attention pairs"] / 3.5
    again = {
        "none": 0.0,
        "selective": projections / 2 + mlp / 3,
        "full": projections + attention + mlp * 2 / 3,
    }
    return model_flops + again[config.train.activation_checkpointing]
