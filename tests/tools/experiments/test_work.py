from __future__ import annotations

import dataclasses
import json
import sys
import threading
from pathlib import Path

import pytest

from oneflow_dist.files import claim
from tests.messages import names, refused
from tests.tools.experiments.making import load
from tools.experiments.plan import Task, plan_tasks, run_of
from tools.experiments.work import Programs, Worker, do_all, trainer_of


class Recording(Worker):
    """A worker whose programs take no time."""

    def train(self, run: object) -> dict[str, object]:
        return {"steps": 4, "seconds": 1.0, "tflops": 0.1, "folder": "x"}

    def measure(self, task: Task) -> list[object]:
        if task.arm == "two" and task.seed == 1:
            raise ValueError("two broke")
        return [("written", ("", 1.0, "told_right", 0.5))]


def test_programs_that_fail_are_told_with_their_last_line(tmp_path: Path) -> None:
    programs, log = Programs(1), tmp_path / "log"
    programs.call([sys.executable, "-c", "print('fine')"], log)
    said = refused(programs.call, [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], log)
    assert names(said, log, 3, "no such thing")
    assert log.read_text().splitlines() == ["fine", "no such thing"]


def test_when_all_are_to_end_what_is_under_way_does_and_nothing_begins(tmp_path: Path) -> None:
    programs, ends = Programs(1), list[BaseException]()

    def call() -> None:
        try:
            programs.call(
                [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], tmp_path / "log"
            )
        except InterruptedError as error:
            ends.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not (tmp_path / "log").exists() or "up" not in (tmp_path / "log").read_text():
        thread.join(0.05)
    programs.stop()
    thread.join(20)
    assert len(ends) == 1
    with pytest.raises(InterruptedError):
        programs.call([sys.executable, "-c", ""], tmp_path / "log")


def test_tasks_are_done_once_whoever_takes_them_and_told_what_they_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = plan_tasks({"small": load(tmp_path)}, "cpu", 1, tmp_path)
    do_all(tasks, Recording(Programs(1)), 3)
    told = json.loads(tasks[0].path.read_text())
    assert (told["arm"], told["seed"], told["training"]["steps"]) == ("one", 0, 4)
    assert told["rows"] == [["written", ["", 1.0, "told_right", 0.5]]]
    assert names(capsys.readouterr().out.splitlines()[-1], "4/4")
    before = [task.path.stat().st_mtime_ns for task in tasks]
    do_all(tasks, Recording(Programs(1)), 2)
    assert [task.path.stat().st_mtime_ns for task in tasks] == before


def test_a_task_that_fails_ends_all_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    tasks = plan_tasks({"small": load(tmp_path)}, "cpu", 2, tmp_path)
    assert names(refused(do_all, tasks, Recording(Programs(1)), 1), "two broke")
    assert [task.path.exists() for task in tasks[:4]] == [True] * 4
    assert not [path for path in tmp_path.rglob("*.json") if "two-1" in path.name]


def test_what_another_process_has_taken_is_waited_for(tmp_path: Path) -> None:
    tasks = plan_tasks({"small": load(tmp_path)}, "cpu", 1, tmp_path)
    tasks[0].path.parent.mkdir(parents=True)
    other = claim(tasks[0].path)
    assert other is not None
    worker = Recording(Programs(1))
    assert not worker.do(tasks[0])
    done = threading.Thread(target=do_all, args=(tasks, worker, 1))
    done.start()
    done.join(1.5)
    assert done.is_alive()
    assert all(task.path.exists() for task in tasks[1:])
    with other:
        other.file.write(b'{"by": "another"}')
        other.commit()
    done.join(20)
    assert json.loads(tasks[0].path.read_text()) == {"by": "another"}


def test_where_a_run_is_trained(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    own, varied, large = (
        run_of(experiment, *arm, 0, tmp_path) for arm in (("one", "cpu"), ("other", "cpu"), ("one", "h100"))
    )
    assert own is not None
    assert varied is not None
    assert large is not None
    assert trainer_of(own, False)[1:] == ["-m", "oneflow_dist.train"]
    assert trainer_of(varied, False)[1:] == ["-m", "tools.experiments.varied", "reversed"]
    assert trainer_of(large, False) == ["launch/torchrun.sh"]
    assert trainer_of(large, True) == ["launch/slurm.sbatch", "--wait", "--nodes=1", "--gpus-per-node=8"]
    assert names(refused(trainer_of, dataclasses.replace(large, hosts=4), False), large.folder, 4, "--slurm")
