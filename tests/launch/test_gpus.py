"""Rows as nvidia-smi writes them, of GPUs that count everything, little and nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launch import gpus
from launch.gpus import FIELDS, gpu_faults, query_gpus, read_row, used_gpus
from tests.messages import names, naming

H100 = "0, GPU-a1b2c3d4-0000-1111-2222-333344445555, 570.124.06, 4, 0x0000000000000001, 0"
RTX_3090 = "1, GPU-0f0f0f0f-aaaa-bbbb-cccc-ddddeeeeffff, 535.183.01, 15, 0x0000000000000000, [N/A]"
NOTHING = "2, [N/A], [N/A], [N/A], [N/A], [Not Supported]"


def row(index: int = 3, used: str = "4", reasons: str = "0x0000000000000001", ecc: str = "0") -> str:
    return f"{index}, GPU-{index}, 570.124.06, {used}, {reasons}, {ecc}"


def test_a_healthy_gpu_has_no_fault_and_what_its_kind_does_not_count_is_none() -> None:
    for line in (H100, RTX_3090, NOTHING):
        assert gpu_faults(read_row(line)) == []
    assert (read_row(H100).driver, read_row(H100).ecc_errors, read_row(H100).event_reasons) == ("570.124.06", 0, 1)
    assert read_row(RTX_3090).ecc_errors is None
    assert (read_row(NOTHING).driver, read_row(NOTHING).used_mib) == ("", None)


@pytest.mark.parametrize(
    ("line", "blame", "named"),
    [
        (row(ecc="12"), "node", ("GPU 3", "12", "ECC")),
        (row(used="[Unknown Error]", ecc="[GPU requires reset]"), "node", ("memory.used", "[GPU requires reset]")),
        (row(used="40537"), "either", ("GPU 3", "40537 MiB")),
        (row(reasons="0x0000000000000048"), "either", ("GPU 3", "hw_slowdown", "hw_thermal_slowdown")),
        (row(reasons="0x00000000000000A0"), "either", ("GPU 3", "sw_thermal_slowdown", "hw_power_brake_slowdown")),
    ],
)
def test_a_fault_is_named_with_its_gpu_and_value_and_what_is_broken_is_the_nodes(
    line: str, blame: str, named: tuple[str, ...]
) -> None:
    ((_, found, text),) = gpu_faults(read_row(line))
    assert found == blame
    assert names(text, *named)


def test_idle_clocks_and_the_power_cap_of_a_busy_gpu_are_no_faults() -> None:
    for reasons in ("0x0000000000000001", "0x0000000000000004", "0x0000000000000002", "0x0000000000000000"):
        assert gpu_faults(read_row(row(reasons=reasons))) == []


@pytest.mark.parametrize(
    "line",
    ["0, GPU-0, 570.1, 4", f"{H100}, 5", "index, uuid, driver_version, a, b, c", row(used="4 MiB"), row(ecc="none")],
)
def test_what_is_not_understood_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        read_row(line)


@pytest.mark.parametrize(
    ("visible", "num_ranks", "expected"),
    [
        (None, 8, [0, 1, 2, 3]),
        (None, 2, [0, 1]),
        ("3,1", 2, [3, 1]),
        ("GPU-2", 1, [2]),
        ("GPU-2, 0", 8, [2, 0]),
        ("7", 1, []),
    ],
)
def test_only_gpus_that_the_ranks_use_are_looked_at(visible: str | None, num_ranks: int, expected: list[int]) -> None:
    rows = [read_row(row(index)) for index in range(4)]
    assert [gpu.index for gpu in used_gpus(rows, visible, num_ranks)] == expected


def fake_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_nvidia_smi_is_asked_for_all_fields_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, f'echo "$@" > {tmp_path}/asked; echo "{H100}"; echo "{RTX_3090}"', monkeypatch)
    assert query_gpus() == [read_row(H100), read_row(RTX_3090)]
    assert ",".join(FIELDS) in (tmp_path / "asked").read_text()


def test_a_nvidia_smi_that_fails_or_hangs_is_an_error_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "Unable to determine the device handle for GPU0000:89:00.0: GPU is lost.  Reboot the system to recover it"
    fake_nvidia_smi(tmp_path, f"echo '{lost}'; exit 15", monkeypatch)
    with pytest.raises(ValueError, match=naming(15, "GPU0000:89:00.0")):
        query_gpus()
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.2)
    fake_nvidia_smi(tmp_path, "exec sleep 60", monkeypatch)
    with pytest.raises(ValueError, match=naming("nvidia-smi", "reboot")):
        query_gpus()


def test_a_machine_without_nvidia_smi_is_known_by_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        query_gpus()
