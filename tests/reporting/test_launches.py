from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneflow_dist.reporting.launches import Place, is_locked, read_attempts, read_place, status_of
from tests.messages import names, naming
from tests.processes import wait_until
from tests.reporting.made_up import write_attempt

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    return path


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def state_of(metrics: Path, last_step: int = 5, num_steps: int = 10) -> tuple[str, str]:
    return tuple(status_of(metrics, last_step, num_steps, read_attempts(metrics.parent)))


def test_who_holds_the_lock_of_its_metrics_is_running_and_loses_nothing(metrics: Path) -> None:
    assert not is_locked(metrics)
    with subprocess.Popen([sys.executable, "-c", HOLD, metrics], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_locked(metrics)
        assert state_of(metrics)[0] == "running"
        assert state_of(metrics, last_step=10)[0] == "running"  # its last checkpoint is being written
        assert holder.poll() is None
        holder.communicate(b"\n")
    wait_until(lambda: not is_locked(metrics), "the lock is free")
    assert state_of(metrics, last_step=10)[0] == "finished"


def test_a_run_that_nobody_launched_has_ended_for_reasons_unknown(metrics: Path) -> None:
    state, reason = state_of(metrics)
    assert state == "ended"
    assert names(reason, "launch/")


@pytest.mark.parametrize("state", ["stopped", "hung", "unfit", "failed"])
def test_the_last_attempt_says_how_a_run_ended_and_its_verdict_why(state: str, metrics: Path) -> None:
    write_attempt(metrics.parent, 0, message="long ago", state="stopped", ended="x")
    write_attempt(metrics.parent, 1, message="as rank 0 says", state=state, ended="x")
    assert state_of(metrics) == (state, "as rank 0 says")


def test_who_died_without_a_word_has_logs(metrics: Path) -> None:
    write_attempt(metrics.parent, 0, state="died", ended="x")
    state, reason = state_of(metrics)
    assert state == "died"
    assert names(reason, "job-7/rank-*.log")


def test_what_would_fail_again_counts_most_while_the_launch_has_not_ended_it(metrics: Path) -> None:
    folder = write_attempt(metrics.parent, 0)
    (folder / "verdict-0.json").write_text('{"state": "hung", "message": "of rank 0"}')
    (folder / "verdict-3.json").write_text('{"state": "failed", "message": "of rank 3"}')
    assert state_of(metrics) == ("failed", "of rank 3")


def test_an_attempt_without_a_line_yet_is_starting(metrics: Path) -> None:
    make_older(metrics, 60.0)
    write_attempt(metrics.parent, 0, host=socket.gethostname())
    assert state_of(metrics)[0] == "starting"


@pytest.mark.parametrize(
    ("is_here", "age", "expected"), [(False, 1.0, "running"), (False, 9e3, "died"), (True, 1.0, "died")]
)
def test_without_a_lock_here_a_run_elsewhere_is_known_by_its_lines(
    is_here: bool, age: float, expected: str, metrics: Path
) -> None:
    folder = write_attempt(metrics.parent, 0, host=socket.gethostname() if is_here else "far-away")
    make_older(folder / "attempt.json", 1e4)
    make_older(metrics, age)
    assert state_of(metrics)[0] == expected


def test_attempts_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write_attempt(tmp_path, number, launch=f"job-{9 - number}")
    attempts = read_attempts(tmp_path)
    assert [attempt.folder.name for attempt in attempts] == ["attempt-0", "attempt-1", "attempt-2"]
    assert attempts[0]["commit"] == "abc123"
    assert attempts[0]["ended"] == ""
    assert attempts[0].read("environment.txt") == ""


def test_a_damaged_attempt_is_named(tmp_path: Path) -> None:
    path = write_attempt(tmp_path, 0) / "attempt.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=naming(path)):
        read_attempts(tmp_path)


def test_the_log_of_rank_0_says_on_what_a_run_is(tmp_path: Path) -> None:
    for number, launch in enumerate(("first", "second", "third")):
        write_attempt(tmp_path, number, launch=launch)
    assert read_place(read_attempts(tmp_path)) == Place()
    (tmp_path / "launches/first/rank-00000.log").write_text("1 x cpu, 7 parameters\n")
    (tmp_path / "launches/second/rank-00000.log").write_text("loading\n64 x cuda, 1,345,678 parameters, 9 trained\n")
    (tmp_path / "launches/third/rank-00000.log").write_text("loading torch\n")
    assert read_place(read_attempts(tmp_path)) == Place(ranks=64, device="cuda", parameters=1345678)
