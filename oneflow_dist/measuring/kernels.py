"""What the device itself can do, whether the kernels are right on it, and all contests between them and their peers."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from oneflow_dist.measuring.attention_cases import attention_cases
from oneflow_dist.measuring.bag_cases import bag_cases
from oneflow_dist.measuring.contest import Case
from oneflow_dist.measuring.kernel_checks import run_checks
from oneflow_dist.measuring.row_cases import row_cases
from oneflow_dist.measuring.timing import time_calls
from oneflow_dist.model.philox import normal_values
from oneflow_kernels.launches import TUNED

CPU_SCALE = 64  # on a CPU the same programs run on shapes so much smaller


def all_cases(device: torch.device) -> Iterator[Case]:
    """Most important first."""
    scale = 1 if device.type == "cuda" else CPU_SCALE
    bags, attention, rows = (list(make(device, scale)) for make in (bag_cases, attention_cases, row_cases))
    yield from (bags[0], attention[1], *rows, *bags[1:], attention[0], *attention[2:])


def measure_kernels(device: torch.device) -> dict[str, Any]:
    """All but the contests; on a CPU the same program runs on small shapes."""
    is_gpu = device.type == "cuda"
    return {
        "matmul_tflops": matmul_rate(device, 8192 if is_gpu else 1024),
        "first_values": measure_first_values(device, 8192 if is_gpu else 128),
        "checks": run_checks(device, 1000 if is_gpu else 60),
    }


def fastest_launches(device: torch.device) -> dict[str, Any]:
    """Milliseconds of every launch of each kernel that has several, the fastest first; what comes after uses it."""
    from oneflow_kernels.tune import tune  # here: it needs Triton, and on a CPU there is nothing to tune

    found = tune(device, TUNED)
    return {kernel: {str(launch): ms for ms, launch in timed} for kernel, timed in found.items()}


def measure_first_values(device: torch.device, size: int) -> dict[str, Any]:
    """Milliseconds to draw size x size first weights, and whether a corner of them has the bits of a CPU."""
    places = torch.arange(size, device=device)
    corner = torch.arange(size - 64, size)
    drawn = normal_values(0, "first values", places, places)
    is_same = torch.equal(drawn[-64:, -64:].cpu(), normal_values(0, "first values", corner, corner))
    milliseconds = median(time_calls(lambda: normal_values(0, "first values", places, places), device))
    return {"milliseconds": milliseconds, "is_same_as_on_cpu": is_same}


def matmul_rate(device: torch.device, size: int) -> float:
    """TFLOP/s of a large product: what no step of a model exceeds on this device.

    So it is the best of all calls, as others that use the device too may slow most of them, and of the two dtypes that
    a step has: CPUs often multiply float32 faster than bfloat16. A small product would tell how long a call takes.
    """
    times = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times += time_calls(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    return 2 * size**3 / min(times) / 1e9
