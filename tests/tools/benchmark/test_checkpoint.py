"""What a save costs a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.launching import Launcher, only_error
from tools.benchmark.checkpoint import HELD_UP, KINDS, SAVE, WAIT
from tools.benchmark.result import read_results


def test_all_kinds_of_saves_are_timed_on_all_ranks(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = "-m", "tools.benchmark", "checkpoint", *train_command(tmp_path / "run")[2:]
    command += (f"checkpoint.memory_folder={tmp_path / 'memory'}",)
    ends = launcher.run_ranks(2, *command, "--rounds=2", "--steps=1", "--output", tmp_path / "out")
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    (result,) = read_results(tmp_path / "out")
    numbers, series = result.measured.numbers, result.measured.series
    assert result.machine["ranks"] == 2
    assert numbers["checkpoint, MiB"] == int(numbers["parameters"]) * 16 >> 20  # type: ignore[arg-type] # weights, average, moments
    for kind in KINDS:
        assert len(series[SAVE][kind]) == len(series[WAIT][kind]) == len(series[HELD_UP][kind]) == 2
        assert min(series[SAVE][kind]) > 0.0
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "memory").iterdir()) == []


def test_the_folder_of_a_run_is_not_touched(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    end = launcher.run("-m", "tools.benchmark", "checkpoint", *train_command(tmp_path / "run")[2:])
    assert end.code == 2
    assert str(tmp_path / "run") in only_error(end)
