"""Whole runs that write checkpoints while they go on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.launching import (
    Finished,
    Launcher,
    only_error,
    read_checkpoint,
    read_metrics,
    without_timings,
)
from tests.messages import names
from tests.processes import wait_until

TrainCommand = Callable[..., list[str]]
OPTIONS = ("sampling.every_steps=0", "checkpoint.every_steps=5", "checkpoint.keep=4")
STEPS = (5, 10, 15, 20)


@pytest.fixture(scope="module")
def foreground(
    launcher: Launcher, train_command: TrainCommand, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Finished]]:
    """Two ranks that write their checkpoints in the foreground."""
    folder = tmp_path_factory.mktemp("foreground") / "run"
    return folder, launcher.run_ranks(2, *train_command(folder, *OPTIONS))


# A run whose ranks, in the middle of their part of the checkpoint of step 10, wait until step `until` has been made.
SLOW_RUN = """
import time
from pathlib import Path

from torch.distributed.checkpoint import filesystem

from oneflow_dist import train
from oneflow_dist.runtime import run_program

FOLDER, UNTIL = Path({folder!r}), {until}
write_item = filesystem._write_item
items = []


def wait_in_the_middle(transforms, stream, *rest):
    if "step-00000010.incomplete" in stream.name:
        items.append(None)
        if len(items) == 20:
            Path(stream.name + ".half").write_text(str(stream.tell()))
            while (FOLDER / "metrics.jsonl").read_text().count("\\n") < UNTIL:
                time.sleep(0.01)
    return write_item(transforms, stream, *rest)


filesystem._write_item = wait_in_the_middle
run_program(train.main)
"""


def slow_run(folder: Path, script: Path, until: int, command: list[str]) -> list[str]:
    script.write_text(SLOW_RUN.format(folder=str(folder), until=until))
    return [str(script), *command[2:]]


def test_steps_that_are_made_while_a_checkpoint_is_written_are_not_in_it(
    launcher: Launcher, train_command: TrainCommand, foreground: tuple[Path, list[Finished]], tmp_path: Path
) -> None:
    folder, (expected, expected_ends) = tmp_path / "run", foreground
    command = train_command(folder, *OPTIONS, "checkpoint.background=true")
    ends = launcher.run_ranks(2, *slow_run(folder, tmp_path / "slow.py", 14, command))
    assert [end.code for end in [*ends, *expected_ends]] == [0] * 4, ends[0].stderr
    halves = sorted(path.name for path in folder.glob("checkpoints/step-00000010/*.half"))
    assert halves == ["__0_0.distcp.half", "__1_0.distcp.half"]  # both waited for step 14, in the middle of a part
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(expected))
    for step in STEPS:
        assert_equal_checkpoints(*(run / f"checkpoints/step-{step:08d}" for run in (folder, expected)), tmp_path)


def test_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(
    launcher: Launcher, train_command: TrainCommand, foreground: tuple[Path, list[Finished]], tmp_path: Path
) -> None:
    folder, (expected, _) = tmp_path / "run", foreground
    command = train_command(folder, *OPTIONS, "checkpoint.background=true")
    job = launcher.start(*slow_run(folder, tmp_path / "slow.py", 10**9, command), num_ranks=2)
    beside = folder / "checkpoints/step-00000010.incomplete"
    wait_until(lambda: len(list(beside.glob("*.half"))) == 2 and len(read_lines(folder)) >= 13, "half of a save")
    job.kill()
    assert [end.code for end in job.wait()] == [-signal.SIGKILL] * 2
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["step-00000005", "step-00000010.incomplete"]
    assert all((beside / f"__{rank}_0.distcp").exists() for rank in (0, 1))
    assert not (beside / ".metadata").exists()
    assert 13 <= len(read_lines(folder)) < 16  # the save after step 15 would have waited for this one

    ends = launcher.run_ranks(2, *command)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    assert any(names(line, beside) for line in ends[0].stdout.splitlines())
    assert f"{folder}/checkpoints/step-00000005" in ends[0].stdout
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(expected))
    for step in STEPS:
        assert_equal_checkpoints(*(run / f"checkpoints/step-{step:08d}" for run in (folder, expected)), tmp_path)


def test_a_background_write_that_fails_ends_all_ranks_with_one_line(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = train_command(folder, *OPTIONS, "checkpoint.background=true")
    ends = launcher.run_ranks(2, *command, file_limit=200_000)
    assert [end.code for end in ends] == [2, 2]
    error = only_error(ends[0])
    assert names(error, "rank 0")
    assert ends[1].stderr.splitlines()[-1] == error.replace("error:", "error (rank 1):", 1)
    assert "Traceback" not in ends[1].stderr
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step-00000005.incomplete"]
    assert len(read_lines(folder)) == 10  # the next save tells what went wrong with this one


def read_lines(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def assert_equal_checkpoints(own: Path, expected: Path, scratch: Path) -> None:
    """All tensors, bit by bit, the settings of the optimizer, and the place in the data."""
    assert json.loads((own / "progress.json").read_text()) == json.loads((expected / "progress.json").read_text())
    state, expected_state = (read_checkpoint(folder, scratch / "state.pt") for folder in (own, expected))
    assert state.keys() == expected_state.keys()
    assert {key.split(".")[0] for key in state} == {"model", "ema", "optimizer"}
    for key, value in state.items():
        theirs = expected_state[key]
        assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs, key
