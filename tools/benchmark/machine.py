"""The machine that measures, and the code: what a result has to say of them."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from oneflow_dist.planning.gpus import peak_flops
from tools.benchmark.report import Line

ROOT = Path(__file__).parents[2]


def describe_machine(commit: str) -> Line:
    """Device, driver, versions, commit and date; what is not there is called "none".

    Leaves the device alone, and torch too, which takes seconds to import.

    Args:
        commit: of this code, where its folder is a copy without git; else empty.
    """
    gpus = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()
    gpus += [f"{platform.processor() or platform.machine()}, none, none"]
    device, memory, driver = gpus[0].split(", ")
    peak = peak_flops(device)
    return {
        "device": device,
        "device_memory": memory,
        "vendor_bf16_tflops": peak and peak / 1e12,
        "driver": driver,
        **{
            package: version(package) if find_spec(package) else "none" for package in ("torch", "triton", "torchtitan")
        },
        "python": platform.python_version(),
        "commit": commit or current_commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def current_commit(folder: Path) -> str:
    """The commit of a checkout, with "-dirty" where files differ from it; "unknown" where git cannot tell."""
    return _ask("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def _ask(*command: str) -> str:
    """What a program prints; nothing if it fails, or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
