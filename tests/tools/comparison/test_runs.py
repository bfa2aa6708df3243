from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import load_config, write_config
from tests.messages import names, refused
from tests.tools.comparison.made_up import plan, write_run
from tools.comparison.plan import Run
from tools.comparison.runs import Maker, Processes, last_line, make_runs


class Pretended(Processes):
    """Programs that write what the real ones would, at once.

    Args:
        fails: the part of a command that ends with code 1.
    """

    def __init__(self, runs: list[Run], fails: str = ""):
        super().__init__()
        self.runs = {str(run.folder): run for run in runs}
        self.fails = fails
        self.called: list[str] = []
        self.environments: list[dict[str, str]] = []

    def call(self, command: list[str], environment: dict[str, str], log: Path, output: Path) -> int:
        assert command[0] == sys.executable
        text = " ".join(command[1:])
        self.called.append(text)
        self.environments.append(environment)
        folder = next(path for path in self.runs if path in command or f"run.folder={path}" in command)
        if self.fails and self.fails in text:
            log.write_text("a bar 10 %\ra bar 20 %\nerror: it is broken\n\n")
            return 1
        if "oneflow_dist.train" in text and not (Path(folder) / "metrics.jsonl").exists():
            Path(folder).rmdir()
            write_run(self.runs[folder])
        if "commands.bound" in text:
            output.write_text("single: at most 1.250 bits a token, error 0.012; 256 texts\n")
        return 0


Make = Callable[..., Pretended]


@pytest.fixture
def make() -> Make:
    def make_all(runs: list[Run], fails: str = "", jobs: int = 1) -> Pretended:
        processes = Pretended(runs, fails)
        make_runs(runs, Maker(samples=256, threads=3, processes=processes), jobs)
        return processes

    return make_all


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    (tmp_path / "runs").mkdir()
    return plan(tmp_path, names=["quickstart", "masked_quickstart"], steps=8)


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_run_is_trained_judged_and_bounded(jobs: int, runs: list[Run], make: Make) -> None:
    processes = make(runs, jobs=jobs)
    for run in runs:
        train, judge, bound = [text for text in processes.called if str(run.folder) in text]
        assert train == " ".join(["-m oneflow_dist.train", str(run.contender.path), *run.overrides])
        assert judge.endswith(f"tools/digits/evaluate.py {run.folder} --samples 256")
        assert bound.endswith(f"oneflow_dist.commands.bound {run.folder} --task image_to_text --documents 256")
        assert (run.folder / "bound.txt").exists()
    assert {environment["OMP_NUM_THREADS"] for environment in processes.environments} == {"3"}


def test_runs_are_made_in_their_order(runs: list[Run], make: Make) -> None:
    trained = [text for text in make(runs).called if "oneflow_dist.train" in text]
    assert [f"run.folder={run.folder}" in text for run, text in zip(runs, trained, strict=True)] == [True] * len(runs)


def test_what_is_there_is_not_made_again(runs: list[Run], make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs[1:]:
        write_run(run)
    (runs[2].folder / "bound.txt").unlink()
    called = make(runs).called
    assert [str(runs[0].folder) in text for text in called] == [True, True, True, False]
    assert "oneflow_dist.commands.bound" in called[3]
    assert str(runs[2].folder) in called[3]
    lines = capsys.readouterr().out.splitlines()
    assert names(lines[0], len(runs) - 2, 2)
    assert names(lines[-1], "[2/2]", runs[2].name, "0:00:00 left")


@pytest.mark.parametrize("key", ["steps", "num_samples"])
def test_a_report_of_another_length_is_made_again(key: str, runs: list[Run], make: Make) -> None:
    path = write_run(runs[0]).folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 3}))
    assert len(make(runs[:1]).called) == 3


def test_a_program_that_fails_names_its_log_and_its_last_line(runs: list[Run], make: Make) -> None:
    message = refused(make, runs, "evaluate.py")
    assert names(message, runs[0].log, "tools/digits/evaluate.py", 1, "error: it is broken")
    assert not runs[-1].folder.exists()


def test_a_log_without_a_line_has_no_last_one(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none") == "none"


def test_a_training_that_was_stopped_is_not_judged(runs: list[Run], make: Make) -> None:
    runs[0].folder.mkdir()
    (runs[0].folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.1}\n')
    assert names(refused(make, runs[:1]), runs[0].folder, 1, runs[0].steps)


def test_a_run_of_another_config_is_refused_before_any_is_made(runs: list[Run], make: Make) -> None:
    write_run(runs[-1])
    config = load_config(runs[-1].contender.path, [*runs[-1].overrides, "optim.lr=0.125", "run.folder=moved"])
    (runs[-1].folder / "config.toml").write_text(write_config(config))
    assert names(refused(make, runs), runs[-1].folder / "config.toml", "lr = 0.125", "lr = 0.0025")
    assert not runs[0].folder.exists()


def test_a_run_of_the_same_config_goes_on_wherever_it_lies(runs: list[Run], make: Make) -> None:
    config = load_config(runs[0].contender.path, [*runs[0].overrides, "run.folder=moved"])
    (write_run(runs[0]).folder / "config.toml").write_text(write_config(config))
    assert make(runs[:1]).called == []


def test_output_and_warnings_of_a_program_are_kept(tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "output"
    log.write_text("before\n")
    program = [sys.executable, "-c", "import os, sys; print(os.environ['SAYS']); sys.exit('a warning')"]
    environment = {**os.environ, "SAYS": "hello"}
    assert Processes().call(program, environment, log, output) == 1
    assert (output.read_text(), log.read_text()) == ("hello\n", "before\na warning\n")
    assert Processes().call(program, environment, log, log) == 1
    assert log.read_text().count("hello") == 1


def test_programs_under_way_are_stopped_and_no_other_begins(tmp_path: Path) -> None:
    processes, codes = Processes(), list[int]()
    program = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    arguments = program, dict(os.environ), tmp_path / "log", tmp_path / "log"
    thread = threading.Thread(target=lambda: codes.append(processes.call(*arguments)))
    thread.start()
    while not (tmp_path / "log").exists() or "here" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.stop()
    thread.join()
    assert codes[0] < 0
    with pytest.raises(InterruptedError):
        processes.call(*arguments)
