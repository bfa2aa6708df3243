"""What a result says of the machine and the code."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
import torch

from tools.benchmark.machine import PowerMeter, describe_machine


def test_a_result_says_what_it_was_measured_on_and_with() -> None:
    machine = describe_machine(commit="0123abc")
    assert machine["commit"] == "0123abc"
    assert machine["torch"] == torch.__version__
    assert machine["torchtitan"] == "0.2.2"
    assert all(machine[key] for key in ("device", "driver", "triton", "python"))
    assert datetime.datetime.fromisoformat(machine["date"]).tzinfo is not None


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_name_memory_and_driver_are_those_of_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "printf 'NVIDIA H200, 143771 MiB, 580.1\\nNVIDIA H200, 143771 MiB, 580.1\\n'")
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe_machine("0123abc")
    assert [machine[key] for key in ("device", "device_memory", "driver")] == ["NVIDIA H200", "143771 MiB", "580.1"]
    assert machine["vendor_bf16_tflops"] == 989.0


def test_a_driver_that_does_not_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo 'no devices were found'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe_machine("0123abc")
    assert (machine["device_memory"], machine["driver"]) == ("none", "none")


def test_without_git_and_image_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ONEFLOW_COMMIT", "")
    assert describe_machine("")["commit"] == "unknown"


def test_power_is_the_mean_of_what_the_driver_says_of_that_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    watts = "300.5\n[N/A]\n500.5\n"
    program(tmp_path, "nvidia-smi", f"printf '{watts}'; echo \"$@\" > {told}; exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter("GPU-1234") as power:
        while not told.exists():
            time.sleep(0.01)
    assert power.watts == 400.5
    assert "--id=GPU-1234" in told.read_text()


@pytest.mark.parametrize("gpu", ["GPU-1234", ""])
def test_where_no_driver_tells_power_is_not_known(gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter(gpu) as power:
        pass
    assert power.watts is None
