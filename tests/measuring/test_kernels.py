"""The measurement of the kernels on a CPU: the same program on small shapes."""

from __future__ import annotations

import pytest
import torch

from oneflow_dist.measuring import kernels
from oneflow_dist.measuring.kernels import matmul_rate, measure_kernels


def test_the_kernels_are_as_exact_as_their_definitions_and_take_time() -> None:
    result = measure_kernels(torch.device("cpu"))
    assert result["attention_error"]["ours"] <= 2 * result["attention_error"]["reference_bf16"]
    assert result["attention_error"]["ours_causal"] <= 2 * result["attention_error"]["reference_bf16_causal"]
    assert result["bag_error"]["ours"] < 1e-5
    assert result["first_values"]["is_same_as_on_cpu"]
    assert result["matmul_tflops"] > 0.0
    assert result["attention_ms"]["forward_backward"] > 0.0
    assert result["attention_ms"]["tflops"] > 0.0
    assert result["bag_ms"]["forward_backward"] > 0.0


def test_the_rate_of_a_device_is_that_of_its_best_call_in_its_faster_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = iter([[4.0, 3.0, 9.0], [8.0, 2.0, 6.0]])
    monkeypatch.setattr(kernels, "time_calls", lambda function, device: next(milliseconds))
    assert matmul_rate(torch.device("cpu"), 100) == pytest.approx(2 * 100**3 / 2e-3 / 1e12)
