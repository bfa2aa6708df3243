"""What vendors say of their GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30
AXES = ("replicate", "shard", "context", "tensor")  # of the mesh, as [parallel] has them

# Dense bfloat16, by a word of what a device calls itself. The first one found counts: longer ones come first.
PEAK_FLOPS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
}


def peak_flops(device: str) -> float | None:
    """FLOP/s that its vendor says a device can do; None for one that is not in the table."""
    return next((value for name, value in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device, re.IGNORECASE)), None)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device and its links, from vendors' data sheets: dense bfloat16, one direction of a link."""

    name: str
    memory_bytes: float
    flops_per_second: float
    node_bytes_per_second: float  # between devices of a node, each
    network_bytes_per_second: float  # between nodes, for each device
    bandwidth_bytes_per_second: float  # of its own memory


# Cards without NVLink talk over PCIe 4.0 x16. Their nodes of eight share what clouds give them: 400 Gb/s to L40S,
# 100 Gb/s to the others. GeForce: products that are summed in float32.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("rtx-3090-24gb", 24e9, 71e12, 32e9, 1.5e9, 936e9),
        Gpu("rtx-4090-24gb", 24e9, 165.2e12, 32e9, 1.5e9, 1008e9),
        Gpu("a10-24gb", 24e9, PEAK_FLOPS["A10"], 32e9, 1.5e9, 600e9),
        Gpu("l40s-48gb", 48e9, PEAK_FLOPS["L40S"], 32e9, 6.25e9, 864e9),
        Gpu("a100-40gb", 40e9, PEAK_FLOPS["A100"], 300e9, 25e9, 1555e9),
        Gpu("a100-80gb", 80e9, PEAK_FLOPS["A100"], 300e9, 25e9, 2039e9),
        Gpu("h100-80gb", 80e9, PEAK_FLOPS["H100"], 450e9, 50e9, 3350e9),
        Gpu("h200-141gb", 141e9, PEAK_FLOPS["H200"], 450e9, 50e9, 4800e9),
        Gpu("b200-180gb", 180e9, PEAK_FLOPS["B200"], 900e9, 50e9, 8000e9),
    )
}


def find_gpu(name: str) -> Gpu:
    """The one of GPUS that a name means, however it is written: h100, H100-80GB, "RTX 4090".

    Raises:
        ValueError: it means none of them, or several.
    """
    found = [gpu for gpu in GPUS.values() if _pieces(name) <= _pieces(gpu.name)]
    if len(found) == 1 and name.strip():
        return found[0]
    matter = "is several" if found else "is not known"
    raise ValueError(f"--gpu: {name!r} {matter}; name one of {', '.join(gpu.name for gpu in found or GPUS.values())}")


def _pieces(name: str) -> set[str]:
    """Words and numbers."""
    return set(re.findall(r"[a-z]+|\d+", name.lower()))
