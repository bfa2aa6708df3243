"""Whole runs whose ranks and nodes are killed, and that go on from memory."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launching import Finished, Launcher, read_metrics, without_timings
from tests.messages import names
from tests.test_background_saves import assert_equal_checkpoints

TrainCommand = Callable[..., list[str]]
LAST = "checkpoints/step-00000020"
OPTIONS = ("sampling.every_steps=0", "checkpoint.keep=9")

# Rank 1 is killed when it comes to a moment of step {step}, once the copies of the step before that are whole.
KILLED_RUN = """
import os, signal, time
from pathlib import Path

from oneflow_dist import train, training
from oneflow_dist.copies import writer
from oneflow_dist.runtime import run_program

module, name, step, whole = {module}, {name!r}, {step}, {whole!r}
do = getattr(module, name)
times = []


def die(*arguments, **options):
    times.append(None)
    if os.environ["RANK"] == "1" and len(times) == step:
        while len(list(Path({memory!r}).glob(f"*/{{whole}}"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return do(*arguments, **options)


setattr(module, name, die)
run_program(train.main)
"""


class Runs:
    """Two ranks, each on a node; their copies are in `memory`."""

    def __init__(self, launcher: Launcher, train_command: TrainCommand, folder: Path):
        self.launcher, self.train_command, self.folder = launcher, train_command, folder
        self.memory, self.run = folder / "memory", folder / "run"

    def command(self, every_steps: int, *overrides: str) -> list[str]:
        copies = ("checkpoint.memory_every_steps=5", f"checkpoint.memory_folder={self.memory}")
        return self.train_command(self.run, *OPTIONS, f"checkpoint.every_steps={every_steps}", *copies, *overrides)

    def start_and_kill(self, every_steps: int, module: str, name: str, step: int, whole: str) -> None:
        """Until rank 1 calls this function for the so-manieth time."""
        script = self.folder / "killed.py"
        script.write_text(KILLED_RUN.format(module=module, name=name, step=step, whole=whole, memory=str(self.memory)))
        command = [str(script), *self.command(every_steps)[2:]]
        ends = self.launcher.run_ranks(2, *command, num_nodes=2)
        assert ends[1].code == -signal.SIGKILL
        assert ends[0].code == 1  # it tells that the other has gone

    def go_on(self, every_steps: int, *overrides: str, num_nodes: int = 2) -> list[Finished]:
        ends = self.launcher.run_ranks(2, *self.command(every_steps, *overrides), num_nodes=num_nodes)
        assert [end.code for end in ends] == [0, 0], ends[0].stderr
        return ends

    def assert_as(self, expected: Path) -> None:
        """Metrics and the last checkpoint are those of another run, and nothing is left in memory."""
        assert without_timings(read_metrics(self.run)) == without_timings(read_metrics(expected))
        assert_equal_checkpoints(self.run / LAST, expected / LAST, self.folder)
        assert list(self.memory.iterdir()) == []


@pytest.fixture(scope="module")
def unbroken_of_two(launcher: Launcher, train_command: TrainCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that make no copies."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ends = launcher.run_ranks(2, *train_command(folder, *OPTIONS, "checkpoint.every_steps=100"), num_nodes=2)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    return folder


@pytest.fixture
def runs(launcher: Launcher, train_command: TrainCommand, tmp_path: Path) -> Runs:
    return Runs(launcher, train_command, tmp_path)


@pytest.mark.parametrize("lost", [None, "node0"])
def test_a_run_of_which_a_rank_is_killed_goes_on_bitwise_though_a_nodes_memory_may_be_gone(
    lost: str | None, runs: Runs, unbroken_of_two: Path
) -> None:
    runs.start_and_kill(100, "training", "train_step", 13, "step-00000010")
    if lost:
        shutil.rmtree(*runs.memory.glob(f"*-{lost}"))
    ends = runs.go_on(100)
    line = next(line for line in ends[0].stdout.splitlines() if "GiB" in line)
    assert names(line, 10, {"node0": "node1"}.get(lost or "", "node0"))
    assert f"continuing from {runs.run}/checkpoints/step-00000010" in ends[0].stdout
    runs.assert_as(unbroken_of_two)


def test_a_run_whose_rank_dies_while_it_sends_goes_on_from_the_copy_before(runs: Runs, unbroken_of_two: Path) -> None:
    runs.start_and_kill(100, "writer", "exchange", 2, "step-00000005")
    assert len(list(runs.memory.glob("*/step-00000010.incomplete"))) == 2
    ends = runs.go_on(100)
    assert f"continuing from {runs.run}/checkpoints/step-00000005" in ends[0].stdout
    runs.assert_as(unbroken_of_two)


def test_a_run_whose_copies_are_all_lost_goes_on_from_the_disk(runs: Runs, unbroken_of_two: Path) -> None:
    runs.start_and_kill(8, "training", "train_step", 13, "step-00000010")
    shutil.rmtree(runs.memory)
    ends = runs.go_on(8)
    assert any(names(line, runs.memory, "node0", "node1") for line in ends[0].stdout.splitlines())
    assert f"continuing from {runs.run}/checkpoints/step-00000008" in ends[0].stdout
    runs.assert_as(unbroken_of_two)


def test_copies_and_checkpoints_in_the_background_are_made_beside_each_other(runs: Runs, unbroken_of_two: Path) -> None:
    runs.go_on(5, "checkpoint.background=true")
    saved = sorted(path.name for path in (runs.run / "checkpoints").iterdir())
    assert saved == [f"step-{step:08d}" for step in (5, 10, 15, 20)]
    runs.assert_as(unbroken_of_two)
