"""The measurement of the kernels on a CPU: the same program on small shapes."""

from __future__ import annotations

import pytest
import torch

from oneflow_dist.measuring import kernels
from oneflow_dist.measuring.kernels import all_cases, matmul_rate, measure_kernels


def test_a_device_and_its_kernels_are_measured() -> None:
    result = measure_kernels(torch.device("cpu"))
    assert result["first_values"]["is_same_as_on_cpu"]
    assert result["matmul_tflops"] > 0.0
    assert all(check["is_right"] for check in result["checks"])


def test_contests_have_names_of_their_own_and_the_main_ones_come_first() -> None:
    names = [case.name for case in all_cases(torch.device("cpu"))]
    assert len(names) == len(set(names)) > 20
    assert names[:2] == ["bag loss, 8B, forward and backward", "attention, 7 documents, forward and backward"]


def test_the_rate_of_a_device_is_that_of_its_best_call_in_its_faster_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = iter([[4.0, 3.0, 9.0], [8.0, 2.0, 6.0]])
    monkeypatch.setattr(kernels, "time_calls", lambda function, device: next(milliseconds))
    assert matmul_rate(torch.device("cpu"), 100) == pytest.approx(2 * 100**3 / 2e-3 / 1e12)
