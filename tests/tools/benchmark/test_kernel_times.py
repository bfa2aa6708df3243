from __future__ import annotations

from typing import Any

import pytest
import torch

from tools.benchmark.kernel_times import TOP, given_bytes, kernel_times, tabulate


def event(name: str, category: str, duration: float, number: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "dur": duration, "args": {"External id": number, **arguments}}


def sized(*dims: list[int], dtype: str = "c10::BFloat16") -> dict[str, Any]:
    return {"Input Dims": list(dims), "Input type": [dtype if size else "Scalar" for size in dims]}


TRACE = [
    {"ph": "M", "name": "process_name"},
    event("aten::copy_", "cpu_op", 9.0, 1, **sized([1000, 500], [1000, 500], [])),
    event("aten::sort", "cpu_op", 9.0, 2, **sized([100])),
    event("aten::copy_", "cpu_op", 9.0, 3, **sized([1000, 500], [1000, 500])),
    event("copy kernel", "kernel", 300.0, 1),
    event("copy kernel", "kernel", 100.0, 3),
    event("sort kernel", "kernel", 50.0, 2),
    event("sort kernel", "kernel", 40.0, 2),
    event("Memset", "gpu_memset", 10.0, 9),
]


def test_kernels_are_summed_by_name_the_slowest_first() -> None:
    copy, sort, memset = tabulate(TRACE)
    assert (copy["name"], copy["calls"], copy["ms"], copy["share"]) == ("copy kernel", 2, 0.4, 0.8)
    assert copy["gb"] == pytest.approx(2 * 2 * 1000 * 500 * 2 / 1e9)
    assert (sort["name"], sort["gb"]) == ("sort kernel", None)  # an operation of two kernels
    assert (memset["ms"], memset["gb"]) == (0.01, None)


def test_bytes_are_known_where_all_types_are() -> None:
    assert given_bytes({"args": sized([3, 4], dtype="float")}) == 48
    assert given_bytes({"args": {"Input Dims": [[[3], [4]]], "Input type": ["TensorList"]}}) is None
    assert given_bytes({}) is None


def test_on_a_cpu_operations_stand_for_kernels() -> None:
    x = torch.randn(64, 64)
    found = kernel_times(lambda: [x @ x, x.exp()], torch.device("cpu"))
    assert {"aten::mm", "aten::exp"} <= {kernel["name"] for kernel in found["kernels"]}
    assert len(found["kernels"]) <= TOP
    assert found["busy_ms"] > 0.0
