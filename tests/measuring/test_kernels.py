"""The measurement of the kernels on a CPU: the same program on small shapes."""

from __future__ import annotations

import torch

from oneflow_dist.measuring.kernels import measure_kernels


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
