"""What a machine does and what limits a process: measured here, and read of made-up control groups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oneflow_dist.commands import machine
from oneflow_dist.commands.machine import (
    core_limits,
    disk_rates,
    has_nccl_interface,
    memory_limits,
    product_rates,
    torch_problem,
)

NAMES = ["lo", "eth0", "eth1"]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where control groups are; this process is in a/b of version 2 and in c of version 1."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/c\n3:cpu:/c\n0::/a/b\n")
    for folder in ("a/b", "cpu/c", "memory/c"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_a_group_without_limits_has_none(groups: Path) -> None:
    (groups / "a/b/cpu.max").write_text("max 100000\n")
    (groups / "a/b/memory.max").write_text("max\n")
    (groups / "cpu/c/cpu.cfs_quota_us").write_text("-1\n")
    (groups / "cpu/c/cpu.cfs_period_us").write_text("100000\n")
    assert (list(core_limits()), list(memory_limits())) == ([], [])


def test_limits_of_this_group_and_of_those_above_it_count(groups: Path) -> None:
    (groups / "a/b/cpu.max").write_text("300000 100000\n")
    (groups / "a/cpu.max").write_text("150000 100000\n")
    (groups / "a/memory.max").write_text("1024\n")
    assert sorted(core_limits()) == [1.5, 3.0]
    assert list(memory_limits()) == [1024.0]


def test_groups_of_version_1_are_read_too(groups: Path) -> None:
    (groups / "cpu/c/cpu.cfs_quota_us").write_text("50000\n")
    (groups / "cpu/c/cpu.cfs_period_us").write_text("100000\n")
    (groups / "memory/memory.limit_in_bytes").write_text("2048\n")
    assert list(core_limits()) == [0.5]
    assert list(memory_limits()) == [2048.0]


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "none")
    assert (list(core_limits()), list(memory_limits())) == ([], [])


@pytest.mark.parametrize(
    ("chosen", "is_there"),
    [
        (["eth"], True),
        (["ib", "eth1"], True),
        (["ib"], False),
        (["=eth0"], True),
        (["=eth"], False),
        (["^docker"], True),
        (["^docker", "lo"], True),
        (["^lo", "eth"], False),
        (["^=eth"], True),
    ],
)
def test_interfaces_are_chosen_as_nccl_does(chosen: list[str], is_there: bool) -> None:
    assert has_nccl_interface(chosen, NAMES) == is_there


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert min(disk_rates(tmp_path)) > 0.0
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No such file"):
        disk_rates(Path("/no/such/folder"))


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE_SECONDS", 1e-9)
    written: list[int] = []
    monkeypatch.setattr(machine.os, "fdatasync", written.append)
    disk_rates(tmp_path)
    assert len(written) <= 1


def test_products_of_both_precisions_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 0.01)
    product_rates.cache_clear()
    assert min(product_rates()[name] for name in ("fp32", "bf16")) > 0.0
    product_rates.cache_clear()


def test_a_torch_that_does_not_load_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_problem.cache_clear()
    assert torch_problem() == ""
    torch_problem.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in torch_problem()
    assert "\n" not in torch_problem()
    torch_problem.cache_clear()
