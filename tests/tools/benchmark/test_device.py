from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from tools.benchmark import device as device_module
from tools.benchmark.device import device_rates, multiplying, products, rate

CPU = torch.device("cpu")


def test_a_device_has_a_rate_for_its_memory_a_large_product_and_all_of_a_step(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "milliseconds_of", lambda call, device: 2.0)
    found = {line["name"]: line for line in device_rates(CPU, {"tiny": make_config()})}
    assert list(found)[:3] == ["copy", "large product, bfloat16", "large product, float32"]
    assert found["copy"]["gb_per_second"] == pytest.approx(2 * 2**24 / 2e-3 / 1e9)
    assert found["large product, float32"]["tflops"] == pytest.approx(2 * 1024**3 / 2e-3 / 1e12)
    flops = 2 * 2048 * 32 * (32 + 2 * 16)  # rows, width, queries and two keys and values of half the heads
    assert found["tiny query, key and value, bfloat16 out"]["tflops"] == pytest.approx(flops / 2e-3 / 1e12)
    assert "tiny gradient of the unembedding, float32 out" in found
    assert len(found) == 3 + 2 * len(products(make_config()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_written_in_both_dtypes(dtype: torch.dtype) -> None:
    multiplying(3, 4, 5, torch.bfloat16, dtype, CPU)()


def test_what_is_refused_is_a_result() -> None:
    def refuse(device: torch.device) -> Callable[[], object]:
        raise RuntimeError("not on this device\nat all")

    assert rate("copy", refuse, CPU, "tflops", 1.0) == {"name": "copy", "failed": "RuntimeError: not on this device"}
