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
    peak_gib: float | None  # allocated at most while steps were timed; None on a CPU
    reserved_gib: float | None  # what the allocator held for that

    def report(self) -> dict[str, Any]:
        """As numbers for the result file."""
        return {
            "steps": len(self.seconds),
            "step_ms": 1e3 * statistics.median(self.seconds),
            "step_ms_range": [1e3 * min(self.seconds), 1e3 * max(self.seconds)],
            "peak_gib": self.peak_gib,
            "reserved_gib": self.reserved_gib,
        }


def time_steps(step: Callable[[int], object], count: int, device: torch.device) -> Steps:
    """Time `count` steps after others that warm up; `step` gets the number of the input set to use."""
    start, number = time.perf_counter(), 0
    while number < 1 or (device.type == "cuda" and time.perf_counter() - start < WARM_SECONDS):
        seconds_of(lambda used=number: step(used % INPUT_SETS), device)  # type: ignore[misc]
        number += 1
    reset_peak(device)
    seconds = [seconds_of(lambda used=used: step(used % INPUT_SETS), device) for used in range(count)]  # type: ignore[misc]
    reserved = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else None
    return Steps(seconds=seconds, peak_gib=peak_gib(device), reserved_gib=reserved)


def milliseconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median of several calls, after others that warm up."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=25, rep=100, return_mode="median"))
    call()
    return 1e3 * statistics.median(seconds_of(call, device) for _ in range(3))


def reset_peak(device: torch.device) -> float:
    """Forget the peak; returns what is allocated now, in GiB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / GIB


def peak_gib(device: torch.device) -> float | None:
    """The most that was allocated since the peak was forgotten; a CPU does not tell."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """From an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
