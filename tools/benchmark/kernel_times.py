"""Where the time of a stretch of work goes, kernel by kernel."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tools.benchmark.schedule import Line
from tools.benchmark.timing import seconds_of

TOP = 40  # kernels that are listed
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # events of a trace; on a CPU operations stand for them
BYTES = {
    "double": 8,
    "long int": 8,
    "float": 4,
    "int": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "bool": 1,
    "unsigned char": 1,
    "c10::Float8_e4m3fn": 1,
}


def kernel_times(call: Callable[[], object], device: torch.device) -> Line:
    """Milliseconds of a call, and of its kernels those that take most of them."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        seconds = seconds_of(call, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kernels = tabulate(events)
    busy = sum(kernel["ms"] for kernel in kernels)
    return {"ms": 1e3 * seconds, "busy_ms": busy, "kernels": kernels[:TOP]}


def tabulate(events: Sequence[dict[str, Any]]) -> list[Line]:
    """Calls, milliseconds, share and gigabytes of each kernel, the slowest first.

    Bytes are those of the tensors that an operation was given, and known where it is one kernel; what it returns is
    not among them, unless it was given that, too.
    """
    timed = [event for event in events if event.get("ph") == "X" and "dur" in event]
    kernels = [event for event in timed if event.get("cat") in ON_DEVICE]
    operations = {_id(event): event for event in timed if event.get("cat") == "cpu_op"}
    of_operation = Counter(map(_id, kernels))
    kernels = kernels or list(operations.values())
    total = sum(event["dur"] for event in kernels)
    found: dict[str, Line] = {}
    for event in kernels:
        line = found.setdefault(event["name"], {"name": event["name"], "calls": 0, "ms": 0.0, "share": 0.0, "gb": 0.0})
        line["calls"] += 1
        line["ms"] += event["dur"] / 1e3
        line["share"] += event["dur"] / total
        size = given_bytes(operations.get(_id(event), {})) if of_operation[_id(event)] <= 1 else None
        line["gb"] = None if size is None or line["gb"] is None else line["gb"] + size / 1e9
    return sorted(found.values(), key=lambda line: -line["ms"])


def given_bytes(operation: dict[str, Any]) -> int | None:
    """Of its tensors; None where the trace does not tell."""
    arguments = operation.get("args", {})
    if "Input Dims" not in arguments:
        return None
    total = 0
    for size, dtype in zip(arguments["Input Dims"], arguments["Input type"], strict=True):
        if not size:
            continue  # a number, or nothing
        if dtype not in BYTES:
            return None  # a list of tensors
        total += math.prod(size) * BYTES[dtype]
    return total


def _id(event: dict[str, Any]) -> Any:
    return event.get("args", {}).get("External id")
