from __future__ import annotations

import pytest

from oneflow_dist.planning.gpus import peak_flops


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
        ("x86_64", None),
    ],
)
def test_a_device_has_its_own_vendors_figure_or_none(device: str, flops: float | None) -> None:
    assert peak_flops(device) == flops
