from __future__ import annotations

import pytest
import torch

from tools.benchmark.kernel_times import TOP, kernel_times


def test_on_a_cpu_operations_stand_for_kernels() -> None:
    x = torch.randn(64, 64)
    found = kernel_times(lambda: [x @ x, x.exp()], torch.device("cpu"))
    assert {"aten::mm", "aten::exp"} <= {kernel["name"] for kernel in found["kernels"]}
    assert len(found["kernels"]) <= TOP
    assert found["busy_ms"] > 0.0
    assert [kernel["ms"] for kernel in found["kernels"]] == sorted((k["ms"] for k in found["kernels"]), reverse=True)
    assert sum(kernel["share"] for kernel in found["kernels"]) == pytest.approx(1.0)
    (product,) = (kernel for kernel in found["kernels"] if kernel["name"] == "aten::mm")
    assert product["calls"] == 1
