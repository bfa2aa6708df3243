"""What vendors say of their GPUs."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

# Dense bfloat16, by what a device calls itself. The first name found in that counts: longer ones come first.
PEAK_FLOPS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}


def peak_flops(device: str) -> float | None:
    """FLOP/s that its vendor says a device can do; None for one that is not in the table."""
    return next((value for name, value in PEAK_FLOPS.items() if name.lower() in device.lower()), None)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device and its links, from vendors' data sheets: dense bfloat16, one direction of a link."""

    name: str
    memory_bytes: float
    flops_per_second: float
    node_bytes_per_second: float  # between devices of a node, each
    network_bytes_per_second: float  # between nodes, for each device


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80gb", 80e9, PEAK_FLOPS["A100"], 300e9, 25e9),
        Gpu("h100-80gb", 80e9, PEAK_FLOPS["H100"], 450e9, 50e9),
        Gpu("h200-141gb", 141e9, PEAK_FLOPS["H200"], 450e9, 50e9),
        Gpu("b200-180gb", 180e9, PEAK_FLOPS["B200"], 900e9, 50e9),
    )
}
