"""The machine that measures, and the code: what a result has to say of them."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from oneflow_dist.planning.gpus import peak_flops
from oneflow_dist.version import current_commit
from tools.benchmark.report import Line

ROOT = Path(__file__).parents[2]
POWER_MS = 200  # between two looks


def describe_machine(commit: str) -> Line:
    """Device, driver, versions, commit and date; what is not there is called "none".

    Leaves the device alone, and torch too, which takes seconds to import.

    Args:
        commit: of this code, where its folder is a copy without git; else empty.
    """
    gpus = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()
    gpus += [f"{_processor()}, none, none"]
    device, memory, driver = gpus[0].split(", ")
    peak = peak_flops(device)
    return {
        "device": device,
        "device_memory": memory,
        "cores": os.cpu_count(),
        "vendor_bf16_tflops": peak and peak / 1e12,
        "driver": driver,
        **{
            package: version(package) if find_spec(package) else "none" for package in ("torch", "triton", "torchtitan")
        },
        "python": platform.python_version(),
        "commit": commit or current_commit(ROOT) or "unknown",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class PowerMeter:
    """Inside, the driver is asked again and again what a GPU draws; `watts` is the mean, None where it does not tell.

    Args:
        gpu: its UUID; empty for none.
    """

    def __init__(self, gpu: str):
        self.watts: float | None = None
        query = "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--loop-ms={POWER_MS}"
        self.command = ["nvidia-smi", f"--id={gpu}", *query] if gpu and shutil.which("nvidia-smi") else []

    def __enter__(self) -> PowerMeter:
        self._process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True) if self.command else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        said, _ = self._process.communicate()
        watts = [float(line) for line in said.splitlines() if re.fullmatch(r"[\d.]+", line)]
        self.watts = statistics.fmean(watts) if watts else None


def _processor() -> str:
    """What the processor calls itself, where Linux tells."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return named[1].replace(", ", " ") if named else platform.machine()


def _ask(*command: str) -> str:
    """What a program prints; nothing if it fails, or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
