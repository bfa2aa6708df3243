"""What is said of a machine: facts of this one, and what made-up ones get for advice."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from oneflow_dist.commands import doctor
from oneflow_dist.commands.doctor import (
    Finding,
    check_cores,
    check_devices,
    check_disk,
    check_layout,
    check_network,
    check_packages,
    check_precision,
    check_room,
    check_run,
    check_software,
    check_speed,
    check_variables,
)
from oneflow_dist.config import Config, write_config


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
    assert "parallel.context x tensor is 2" in said


def test_a_gpu_that_torch_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = by_name(list(check_software()))["torch"]
    assert found.state == "slow"
    assert found.advice


@pytest.mark.parametrize(
    ("limits", "threads", "state"),
    [([], "", "ok"), ([64.0], "", "ok"), ([0.5], "", "slow"), ([0.5], "1", "slow"), ([1.0], "1", "ok")],
)
def test_more_threads_than_cores_are_told(
    limits: list[float], threads: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "core_limits", lambda: iter(limits))
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = by_name(list(check_cores()))["cores"]
    assert found.state == state
    assert bool(found.advice) == (state == "slow")


def test_memory_is_what_a_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_limits", lambda: iter([2.0**30]))
    assert by_name(list(check_cores()))["memory"].says.startswith("1.0 GiB free, of at most 1.0")
    monkeypatch.setattr(doctor, "memory_limits", lambda: iter([2.0**60]))  # so version 1 writes that there is none
    assert "most" not in by_name(list(check_cores()))["memory"].says


def test_a_torch_that_does_not_load_is_broken_and_the_rest_is_told(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "torch_problem", lambda: "no libcudart.so.12")
    (tmp_path / "config.toml").write_text(write_config(make_config()))
    code, said = call(monkeypatch, capsys, str(tmp_path), "--json")
    found = {each["name"]: each for each in json.loads(said)}
    assert code == 1
    assert (found["torch"]["state"], "libcudart" in found["torch"]["says"]) == ("broken", True)
    assert {"cores", "disk", "network"} <= found.keys()


class Gpu(SimpleNamespace):
    """What torch tells of a GPU that is not here."""


def pretend(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], rates: tuple[float, float] = (1e13, 9e14)
) -> None:
    """A GPU that is not here, with its rates in fp32 and bf16."""
    about = Gpu(name=name, total_memory=80 * 2**30, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(doctor, "product_rates", lambda: dict(zip(("fp32", "bf16"), rates, strict=True)))


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("name", "capability", "states"),
    [
        (H100, (9, 0), {"GPU 0": "ok", "attention": "ok", "kernels": "ok"}),
        ("NVIDIA H200", (9, 0), {"GPU 0": "ok", "attention": "ok", "kernels": "slow"}),  # not tuned for it
        ("NVIDIA B200", (10, 0), {"GPU 0": "ok", "attention": "slow", "kernels": "slow"}),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", (8, 0), {"GPU 0": "slow", "attention": "ok", "kernels": "slow"}),
        ("Tesla T4", (7, 5), {"GPU 0": "slow", "attention": "ok", "kernels": "slow"}),
    ],
)
def test_gpus_are_described_with_what_is_slow_on_them(
    name: str, capability: tuple[int, int], states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name, capability)
    monkeypatch.setattr("oneflow_kernels.packed_attention.flash_attention.choose", lambda _: "")
    found = by_name(list(check_devices()))
    assert {each: found[each].state for each in found} == states
    assert all(bool(each.advice) == (each.state == "slow") for each in found.values())
    assert name in found["GPU 0"].says
    assert f"compute {capability[0]}.{capability[1]}" in found["GPU 0"].says
    assert "FlashAttention 4 is not installed" in found["attention"].says


def test_a_torch_without_flash_attention_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA A100-SXM4-80GB", (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    found = by_name(list(check_devices()))["attention"]
    assert found.state == "missing"
    assert "ONEFLOW_KERNELS=triton" in found.advice


@pytest.mark.parametrize("module", ["Open Kernel Module for x86_64", "x86_64 Kernel Module"])
def test_the_driver_of_gpus_is_told_and_that_they_need_triton(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, H100, (9, 0))
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    line = f"NVRM version: NVIDIA UNIX {module}  570.86.15  Release Build\nGCC version:  gcc 11.4.0\n"
    (tmp_path / "version").write_text(line)
    found = by_name(list(check_software()))
    assert found["NCCL"].says == "2.27.5; driver 570.86.15"
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "triton")
    assert by_name(list(check_software()))["triton"].state == "broken"


@pytest.mark.parametrize(
    ("name", "rates", "state"),
    [
        (H100, (5e13, 7e14), "ok"),
        (H100, (5e13, 1e14), "slow"),  # a tenth of what its vendor says
        (f"{H100} MIG 1g.10gb", (5e13, 1e14), "ok"),  # a seventh of it is all that is here
        ("a GPU that is in no table", (5e13, 1e14), "ok"),
        ("a GPU that is in no table", (5e13, 4e13), "slow"),
    ],
)
def test_products_that_are_too_slow_are_told(
    name: str, rates: tuple[float, float], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name, (9, 0), rates)
    (found,) = check_speed()
    assert found.state == state
    assert bool(found.advice) == (state == "slow")


@pytest.mark.parametrize(
    ("precision", "rates", "state"),
    [
        ("bf16", (1e11, 9e11), "ok"),  # a CPU with a unit for it
        ("bf16", (1e11, 1e10), "slow"),
        ("fp32", (1e11, 9e11), "ok"),
        ("float8", (1e11, 9e11), "slow"),
    ],
)
def test_a_precision_is_slow_where_its_products_are(
    precision: str,
    rates: tuple[float, float],
    state: str,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "product_rates", lambda: dict(zip(("fp32", "bf16"), rates, strict=True)))
    (found,) = check_precision(make_config(f"train.precision={precision}"))
    assert (found.state, bool(found.advice)) == (state, state == "slow")


def test_float8_on_a_gpu_that_has_none_is_broken(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "NVIDIA A100-SXM4-80GB", (8, 0))
    (found,) = check_precision(make_config("train.precision=float8"))
    assert found.state == "broken"
    assert "8.9" in found.says


@pytest.mark.parametrize(
    ("override", "name", "state"),
    [
        ("parallel.tensor=2", "layout", "slow"),
        ("parallel.context=2", "layout", "slow"),
        ("parallel.replicate=4", "layout", "slow"),
        ("parallel.shard=4", "layout", "slow"),
        ("data.workers=64", "data workers", "slow"),
    ],
)
def test_more_than_this_machine_has_is_told(
    override: str, name: str, state: str, make_config: Callable[..., Config]
) -> None:
    assert list(check_layout(make_config())) == []
    (found,) = check_layout(make_config(override))
    assert (found.name, found.state) == (name, state)
    assert found.advice


def test_a_compiled_run_without_a_compiler_is_broken(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    (found,) = check_layout(make_config("train.compile=true"))
    assert (found.name, found.state) == ("compiler", "broken")


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("init.path=no_such_weights", "first weights"),
        ("modality.image.codec=no_such_codec", "codec of image"),
        ("validation.mixture=no_such_mixture.yaml", "held-out data"),
        ("data.tokenizer=no_such_ranks", "tokenizer"),
    ],
)
def test_what_a_run_reads_and_is_not_there_is_broken(
    override: str, name: str, make_config: Callable[..., Config]
) -> None:
    extra = ["validation.every_steps=1"] if "validation" in override else []
    found = by_name(list(check_run(make_config(override, *extra))))
    assert found[name].state == "broken"
    assert override.partition("=")[2] in found[name].says
    assert [each for each in found if found[each].state == "broken"] == [name]


def test_a_disk_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: Path) -> tuple[float, float]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "disk_rates", refuse)
    found = check_disk("disk", tmp_path / "not/yet/made")
    assert found.state == "missing"
    assert str(tmp_path) in found.says
    monkeypatch.setattr(doctor, "disk_rates", lambda _: (1e6, 1e9))
    assert check_disk("disk", tmp_path).state == "slow"
    monkeypatch.setattr(doctor, "disk_rates", lambda _: (1e9, 1e9))
    assert check_disk("disk", tmp_path).state == "ok"


@pytest.mark.parametrize(("hard", "state"), [(1024, "slow"), (20000, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_a_limit_of_open_files_that_is_too_low_is_told(hard: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "disk_rates", lambda _: (1e9, 1e9))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (1024, hard))
    assert by_name(list(check_room()))["open files"].state == state


def test_harmful_variables_are_slow_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert list(check_variables()) == []
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = by_name(list(check_variables()))
    assert (found["CUDA_LAUNCH_BLOCKING"].state, found["OMP_NUM_THREADS"].state) == ("slow", "ok")
    for value, state in (("0", "ok"), ("1", "slow")):
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", value)
        assert by_name(list(check_variables()))["TORCHDYNAMO_DISABLE"].state == state
    for value, state in (("triton", "ok"), ("reference", "slow")):
        monkeypatch.setenv("ONEFLOW_KERNELS", value)
        assert by_name(list(check_variables()))["ONEFLOW_KERNELS"].state == state


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("GLOO_SOCKET_IFNAME", "nothing0", "broken"),
        ("GLOO_SOCKET_IFNAME", "lo", "ok"),
        ("GLOO_SOCKET_IFNAME", "lo,nothing0", "broken"),  # as runtime.py refuses it
        ("GLOO_SOCKET_IFNAME", "l", "broken"),  # whole names
        ("NCCL_SOCKET_IFNAME", "nothing0", "slow"),
        ("NCCL_SOCKET_IFNAME", "l", "ok"),
        ("NCCL_SOCKET_IFNAME", "^docker", "ok"),
    ],
)
def test_an_interface_that_was_chosen_and_is_not_there_is_told(
    variable: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert [finding.state for finding in check_network()] == [state]


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
