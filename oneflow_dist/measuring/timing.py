"""How long calls and training steps take on a device, and how much memory they need at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from oneflow_dist.planning.gpus import GIB

INPUT_SETS = 4  # so that it is not a cache that is measured
WARM_SECONDS = 2.0  # of steps on a GPU before any is timed: its clocks rise under load


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Times of training steps, each from an idle device to an idle device."""

    seconds: list[float]
    first_seconds: float  # of the very first step, which compiles
    peak_gib: float | None  # allocated at most while steps were timed; None on a CPU
    reserved_gib: float | None  # what the allocator held for that

    def report(self) -> dict[str, Any]:
        """As numbers for the result file."""
        return {
            "steps": len(self.seconds),
            "step_ms": 1e3 * statistics.median(self.seconds),
            "step_ms_range": [1e3 * min(self.seconds), 1e3 * max(self.seconds)],
            "first_step_seconds": self.first_seconds,
            "peak_gib": self.peak_gib,
            "reserved_gib": self.reserved_gib,
        }


def time_steps(step: Callable[[int], object], count: int, device: torch.device) -> Steps:
    """Time `count` steps after others that compile and warm up; `step` gets the number of the input set to use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what drawing the first weights took
    first_seconds = _seconds(step, 0, device)
    start, number = time.perf_counter(), 1
    while number < INPUT_SETS or (device.type == "cuda" and time.perf_counter() - start < WARM_SECONDS):
        _seconds(step, number % INPUT_SETS, device)
        number += 1
    reset_peak(device)
    seconds = [_seconds(step, number % INPUT_SETS, device) for number in range(count)]
    reserved = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else None
    return Steps(seconds=seconds, first_seconds=first_seconds, peak_gib=peak_gib(device), reserved_gib=reserved)


def time_calls(function: Callable[[], Any], device: torch.device) -> list[float]:
    """Milliseconds of each of several calls, after others that warm up."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(function, warmup=100, rep=400, return_mode="all")
    function()
    return [1e3 * _seconds(lambda _: function(), 0, device) for _ in range(5)]


def reset_peak(device: torch.device) -> float:
    """Forget the peak; returns what is allocated now, in GiB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / GIB


def peak_gib(device: torch.device) -> float | None:
    """The most that was allocated since the peak was forgotten; a CPU does not tell."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def _seconds(step: Callable[[int], object], input_set: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    step(input_set)
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
