from __future__ import annotations

import pytest

from oneflow_dist.planning.gpus import GPUS, find_gpu, peak_flops
from tests.messages import naming


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),  # no A100
        ("NVIDIA GeForce RTX 4090", None),
        ("x86_64", None),
    ],
)
def test_a_device_has_its_own_vendors_figure_or_none(device: str, flops: float | None) -> None:
    assert peak_flops(device) == flops


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *((name, name) for name in GPUS),
        *((name.upper(), name) for name in GPUS),
        ("h100", "h100-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("a10", "a10-24gb"),
        ("RTX4090", "rtx-4090-24gb"),
        ("rtx_3090", "rtx-3090-24gb"),
    ],
)
def test_a_gpu_is_found_however_it_is_written(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize(
    ("written", "choice"), [("a100", ["a100-40gb", "a100-80gb"]), ("v100", list(GPUS)), ("", list(GPUS))]
)
def test_a_gpu_of_another_name_is_refused(written: str, choice: list[str]) -> None:
    with pytest.raises(ValueError, match=naming("--gpu", repr(written), ", ".join(choice))):
        find_gpu(written)
