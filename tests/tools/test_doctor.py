"""What is said of a machine: facts of this one, and what made-up ones get for advice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config, write_config
from tools import doctor
from tools.doctor import (
    Finding,
    check_cores,
    check_network,
    check_packages,
    check_room,
    check_software,
    check_variables,
)


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["doctor", *words])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    return int(end.value.code or 0), capsys.readouterr().out


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = call(monkeypatch, capsys, "--json")
    found = {each["name"]: each for each in json.loads(said)}
    assert code == 0
    assert found["python"]["says"].startswith(".".join(map(str, sys.version_info[:3])))
    assert torch.__version__ in found["torch"]["says"]
    assert {"products", "cores", "memory", "disk", "open files", "network"} <= found.keys()
    assert all(each["advice"] for each in found.values() if each["state"] in ("missing",))


def test_lines_end_with_a_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([Finding("a", "ok", "b"), Finding("c", "slow", "d", "do e")]),))
    code, said = call(monkeypatch, capsys)
    assert code == 0
    assert said.splitlines()[-1] == "1 ok, 1 slow, 0 missing, 0 broken"
    assert "-> do e" in said


def test_a_run_that_cannot_work_here_is_code_1(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    path = tmp_path / "config.toml"
    path.write_text(write_config(make_config()))
    assert call(monkeypatch, capsys, str(path))[0] == 0
    assert call(monkeypatch, capsys, str(tmp_path))[0] == 0  # a run folder
    code, said = call(monkeypatch, capsys, str(path), "data.mixture=nothing.yaml", "parallel.tensor=2")
    assert code == 1
    assert "nothing.yaml" in said
    assert "parallel.tensor is 2" in said


def test_a_gpu_that_torch_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = by_name(list(check_software()))["torch"]
    assert found.state == "slow"
    assert found.advice


@pytest.mark.parametrize(("quota", "state"), [("max 100000", "ok"), ("", "ok"), ("50000 100000", "slow")])
def test_a_container_that_gets_less_than_its_cores_is_told(
    quota: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_cgroup", lambda name: quota if name == "cpu.max" else "")
    found = by_name(list(check_cores()))["cores"]
    assert found.state == state
    assert ("OMP_NUM_THREADS=1" in found.advice) == (state == "slow")


def test_harmful_variables_are_slow_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert list(check_variables()) == []
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = by_name(list(check_variables()))
    assert (found["CUDA_LAUNCH_BLOCKING"].state, found["OMP_NUM_THREADS"].state) == ("slow", "ok")


def test_an_interface_that_is_not_there_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    assert [finding.state for finding in check_network()] == ["broken"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert [finding.state for finding in check_network()] == ["ok"]


def test_an_extra_whose_package_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "uvicorn":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    found = by_name(list(check_packages()))
    assert found["extra serve"].state == "missing"
    assert "uvicorn" in found["extra serve"].says
    assert "[serve]" in found["extra serve"].advice
    assert found["extra sounds"].state == "ok"


def test_the_disk_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert by_name(list(check_room()))["disk"].says
    assert not list(tmp_path.iterdir())
