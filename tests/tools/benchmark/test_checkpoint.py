"""tools/benchmark/checkpoint.py: what a save costs a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.launching import Launcher, only_error


def test_both_kinds_of_saves_are_timed_on_all_ranks(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = [*train_command(tmp_path / "run")[2:], "--rounds", "2", "--steps", "1"]
    ends = launcher.run_ranks(2, "tools/benchmark/checkpoint.py", *arguments)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    result = json.loads(ends[0].stdout)
    assert result["ranks"] == 2
    assert result["checkpoint_mib"] == result["parameters"] * 16 >> 20  # weights, average and two moments
    for kind in ("foreground", "background"):
        assert len(result["seconds"][kind]) == 2
        assert all(times["save"] > 0 for times in result["seconds"][kind])
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_is_not_touched(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    end = launcher.run("tools/benchmark/checkpoint.py", *train_command(tmp_path / "run")[2:])
    assert end.code == 2
    assert only_error(end) == (
        f"error: {tmp_path / 'run'}: is there already, and would be deleted; name another run.folder"
    )
