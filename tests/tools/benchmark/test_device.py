from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from tools.benchmark import device as device_module
from tools.benchmark.device import Product, device_rates, products, rate, summing

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
    assert "tiny gradient of the unembedding, float32 out, added" in found
    assert len(found) == 3 + 4 * len(list(products(make_config())))


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_written_and_added_in_both_dtypes(layout: str, dtype: torch.dtype) -> None:
    product = Product(name="", m=3, k=4, n=5, layout=layout)
    a, b = product.operands(CPU)
    assert (a.shape, b.shape) == ((3, 4), (4, 5))
    assert (a.is_contiguous(), b.is_contiguous()) == (layout[0] == "n", layout[1] == "n")
    for is_added in (False, True):
        summing(product, dtype, is_added, CPU)()


def test_what_is_refused_is_a_result() -> None:
    def refuse() -> Callable[[], object]:
        raise RuntimeError("not on this device\nat all")

    assert rate("copy", refuse, CPU) == {"name": "copy", "failed": "RuntimeError: not on this device"}
