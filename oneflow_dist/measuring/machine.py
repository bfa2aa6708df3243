"""What was measured on: the device, its vendor's figures, and the versions of everything between it and us."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from oneflow_dist.planning.gpus import peak_flops

ROOT = Path(__file__).parents[2]


def describe_machine(commit: str = "") -> dict[str, Any]:
    """Device, driver, versions, commit and date; what is not there is called "none".

    Leaves the device alone: memory that this process took would be missing where it is measured.

    Args:
        commit: of this code, where its folder is a copy without git.
    """
    name, memory, driver = describe_gpu()
    peak = peak_flops(name)
    return {
        "device": name,
        "device_memory": memory,
        "vendor_bf16_tflops": peak and peak / 1e12,
        "driver": driver,
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else "none",
        "torchtitan": version("torchtitan") if find_spec("torchtitan") else "none",
        "python": platform.python_version(),
        "commit": commit or current_commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_gpu() -> tuple[str, str, str]:
    """Name, memory and driver of the first GPU; those of the processor where there is none."""
    if shutil.which("nvidia-smi") is None:
        return platform.processor() or platform.machine(), "none", "none"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode:
        return platform.processor() or platform.machine(), "none", "none"
    name, memory, driver = answer.stdout.splitlines()[0].split(", ")
    return name, memory, driver


def current_commit(folder: Path) -> str:
    """The commit of a checkout, with "-dirty" where files differ from it; "unknown" where git cannot tell."""
    if shutil.which("git") is None:
        return "unknown"
    query = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
