"""Where the time of a stretch of work goes, kernel by kernel."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tools.benchmark.report import Line
from tools.benchmark.timing import synchronize

TOP = 40  # kernels that are listed


def kernel_times(call: Callable[[], object], device: torch.device) -> Line:
    """Milliseconds of a call, and of its kernels those that take most; on a CPU operations stand for kernels."""
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as profiler:
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds = time.perf_counter() - start
    kernels = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": (event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1e3,
        }
        for event in profiler.key_averages()
        # Named stretches of the program come as events of the device, too.
        if event.device_type == (DeviceType.CUDA if is_gpu else DeviceType.CPU) and not event.is_user_annotation
    ]
    busy = sum(kernel["ms"] for kernel in kernels)
    slowest = sorted(kernels, key=lambda kernel: -kernel["ms"])[:TOP]
    return {
        "ms": 1e3 * seconds,
        "busy_ms": busy,
        "kernels": [{**kernel, "share": kernel["ms"] / busy} for kernel in slowest],
    }
