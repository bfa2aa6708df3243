"""How long calls and training steps take on a device, and how much memory they need at most."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from oneflow_dist.guard.guard import Guard
from oneflow_dist.guard.skipping import LaunchedStep
from oneflow_dist.planning.gpus import GIB
from tools.benchmark.report import Line

INPUT_SETS = 4  # so that it is not a cache that is measured
WARM_SECONDS = 2.0  # of steps on a GPU before any is timed: its clocks rise under load


def time_steps(step: Callable[[int], object], count: int, device: torch.device) -> tuple[float, Line]:
    """Seconds of `count` training steps, each from an idle device to an idle device, and what a result says of them.

    Others before them warm up; `step` gets the number of the input set to use.
    """
    start, number = time.perf_counter(), 0
    while number < 1 or (device.type == "cuda" and time.perf_counter() - start < WARM_SECONDS):
        step(number % INPUT_SETS)
        synchronize(device)
        number += 1
    reset_peak(device)
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        step(number % INPUT_SETS)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sum(seconds), {
        "steps": count,
        "step_ms": 1e3 * statistics.median(seconds),
        "step_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "peak_gib": peak_gib(device),
        "reserved_gib": torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else None,
    }


def running_ms(launch: Callable[[int], LaunchedStep], guard: Guard, count: int, device: torch.device) -> float:
    """Milliseconds of a training step as the loop makes them: each is looked at when the next has been launched."""
    synchronize(device)
    start = time.perf_counter()
    before = launch(0)
    for number in range(1, count):
        before, made = launch(number % INPUT_SETS), before
        guard.finish(made)
    guard.finish(before)
    synchronize(device)
    return 1e3 * (time.perf_counter() - start) / count


def host_waits(launch: Callable[[], LaunchedStep], guard: Guard, device: torch.device) -> int | None:
    """Calls of a step in which the host waits for the device, as far as torch sees them; a CPU has none."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        made = launch()
    torch.cuda.set_sync_debug_mode("default")
    guard.finish(made)
    return sum("synchroniz" in str(wait.message) for wait in waits)


def milliseconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median of several calls, after others that warm up."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=25, rep=100, return_mode="median"))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])


def reset_peak(device: torch.device) -> float:
    """Forget the peak; returns what is allocated now, in GiB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / GIB


def peak_gib(device: torch.device) -> float | None:
    """The most that was allocated since the peak was forgotten; a CPU does not tell."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more: of first weights, of compiling, of a model before."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
