from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.guard.watchdog import Place, Watchdog, name_ranks
from tests.launching import ENVIRONMENT, ROOT, TIMEOUT, TORCHRUN, Launcher, only_error, read_metrics, wait_for_step
from tests.messages import names
from tests.processes import children, environment, is_alive, wait_until

TrainCommand = Callable[..., list[str]]
HANG_SECONDS = 10.0  # a step takes 0.1 s, on a busy machine 2 s


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([0, 2, 3, 4, 9], "ranks 0, 2-4, 9"), (list(range(512)), "ranks 0-511")],
)
def test_ranks_are_named_in_few_words(ranks: list[int], expected: str) -> None:
    assert name_ranks(ranks) == expected


@pytest.mark.usefixtures("group_of_one")
def test_a_watchdog_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    threads = threading.active_count()
    watchdog = Watchdog(lambda: Place(step=1, phase="start", since=time.monotonic(), limit=60.0), tmp_path, 0.01)
    time.sleep(0.1)
    assert threading.active_count() == threads + 2
    watchdog.close()
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("group_of_one")
def test_who_is_behind_comes_first_and_who_reports_nothing_is_silent(tmp_path: Path) -> None:
    here = Place(step=7, phase="forward and backward", since=time.monotonic(), limit=60.0)
    watchdog = Watchdog(lambda: here, tmp_path, 0.4)
    watchdog._world_size = 5
    for rank, step, phase in ((1, 7, "waiting for data"), (2, 6, "checkpoint"), (3, 6, "checkpoint")):
        watchdog._store.set(str(rank), json.dumps((5, step, phase, "elsewhere")))
    wait_until(lambda: watchdog._store.check(["0"]), "rank 0 to report itself")
    described = watchdog._describe_ranks()
    watchdog.close()
    *groups, missing = described.removeprefix("; ").split("; ")
    assert [group.endswith(", silent") for group in groups] == [True, True, False]
    behind = ("2-3", '"checkpoint"', 6, 1, "elsewhere", '"waiting for data"', 7)
    assert names(described, *behind, 0, '"forward and backward"', 7)
    assert names(missing, 4)


def test_a_rank_that_stops_is_named_by_the_other_and_torchrun_ends_both(
    train_command: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = [f"guard.hang_seconds={HANG_SECONDS}", "train.steps=100000", "sampling.every_steps=0"]
    command = train_command(folder, *overrides, "checkpoint.every_steps=100000")
    torchrun = [sys.executable, *TORCHRUN, "--nproc-per-node", "2", *command]
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(torchrun, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
        wait_for_step(folder, 3)
        ranks = {int(environment(pid)["RANK"]): pid for pid in children(job.pid)}
        os.kill(ranks[1], signal.SIGSTOP)
        wait_until(lambda: not is_alive(ranks[0]), "the end of rank 0")
        assert [path.name for path in (folder / "hangs").iterdir()] == ["rank-0.txt"]  # the other cannot write
        os.kill(ranks[1], signal.SIGCONT)  # else torchrun waits 30 s before it kills it
        assert job.wait(TIMEOUT) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    step = len(read_metrics(folder)) + 2  # the line of a step is written when the next one is launched
    (line,) = [line for line in (tmp_path / "output").read_text().splitlines() if line.startswith("error: ")]
    assert names(line, 0, step, "guard.hang_seconds", f"{HANG_SECONDS:g}", 1, folder / "hangs")
    assert "in train_step" in (folder / "hangs/rank-0.txt").read_text()


def test_a_rank_that_waits_for_its_data_is_behind_the_others(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = [f"guard.hang_seconds={HANG_SECONDS}", "train.steps=100000", "sampling.every_steps=0"]
    more = ["checkpoint.every_steps=100000", "data.workers=1"]
    recorder = {"TORCH_FR_BUFFER_SIZE": "100", "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "flight-")}
    job = launcher.start(*train_command(folder, *overrides, *more), num_ranks=2, env=recorder)
    wait_for_step(folder, 3)
    (worker,) = children(job.pids[1])
    os.kill(worker, signal.SIGSTOP)
    ends = job.wait()
    assert all(end.code != 0 for end in ends)
    wait_until(lambda: not is_alive(worker), "the end of the worker, a moment after its rank's")
    said = [line for end in ends for line in end.stderr.splitlines() if "guard.hang_seconds" in line]
    assert len(said) == 1  # one rank speaks for all
    step = len(read_metrics(folder)) + 2  # the line of a step is written when the next one is launched
    rank_1, rank_0 = (1, '"waiting for data"', step), (0, '"waiting for the other ranks"', step)
    assert names(said[0], "guard.hang_seconds", f"{HANG_SECONDS:g}", *rank_1, *rank_0, folder / "hangs")
    stacks = {path.name: path.read_text() for path in (folder / "hangs").iterdir()}
    assert sorted(stacks) == ["rank-0.txt", "rank-1.txt"]
    assert "in agree" in stacks["rank-0.txt"]
    assert "in next_step" in stacks["rank-1.txt"]
    numbers = []
    for rank in (0, 1):
        entries = pickle.loads((tmp_path / f"flight-{rank}").read_bytes())["entries"]
        numbers.append(max(entry["collective_seq_id"] for entry in entries if entry["process_group"][0] == "0"))
    assert numbers[0] == numbers[1] + 1  # the collective in which rank 0 waits


STUCK = """
import ctypes, os, threading, time
from pathlib import Path
from oneflow_dist.guard.watchdog import Place, Watchdog
from oneflow_dist.runtime import run_program, start_process

def main():
    start_process()
    start = time.monotonic()
    watchdog = Watchdog(lambda: Place(step=4, phase="sampling", since=start, limit={limit}), Path("{folder}"), 0.1)
    time.sleep(0.5)
    {body}

run_program(main)
"""


def test_a_process_alone_is_ended_too(launcher: Launcher, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STUCK.format(limit=1.0, folder=tmp_path / "hangs", body="time.sleep(1000)"))
    end = launcher.run(program)
    assert end.code == 1
    assert names(only_error(end), 0, '"sampling"', 4, "guard.hang_seconds", 1, tmp_path / "hangs")
    assert re.search(r'"sampling".* 4\n.*program.py", line 12 in main', read(tmp_path), re.DOTALL)


def test_a_store_that_does_not_answer_once_is_not_asked_again(launcher: Launcher, tmp_path: Path) -> None:
    program, said = tmp_path / "program.py", tmp_path / "said"
    body = (
        "import oneflow_dist.guard.watchdog as module; module.ANSWER_SECONDS = 0.2\n"
        f"    ask = lambda *_: (Path({str(said)!r}).open('a').write('asked\\n'), time.sleep(1000))\n"
        "    watchdog._store = type('Deaf', (), {'add': ask, 'set': ask, 'check': ask, 'multi_get': ask})()\n"
        "    time.sleep(1000)"
    )
    program.write_text(STUCK.format(limit=2.0, folder=tmp_path / "hangs", body=body))
    end = launcher.run(program)
    assert end.code == 1
    assert names(only_error(end), '"sampling"', "store", "does not answer")
    assert said.read_text() == "asked\n" * 2  # to raise the alarm, and by the thread that reports


def test_a_process_whose_interpreter_is_stuck_in_c_code_is_ended_too(launcher: Launcher, tmp_path: Path) -> None:
    assert hasattr(ctypes, "PyDLL")  # calls that keep the interpreter's lock
    program = tmp_path / "program.py"
    program.write_text(STUCK.format(limit=2.0, folder=tmp_path / "hangs", body="ctypes.PyDLL(None).sleep(1000)"))
    end = launcher.run(program)
    assert end.code == 1
    assert end.stderr.startswith("Timeout (0:00:02)!\n")
    assert 'program.py", line 12 in main' in end.stderr


def test_a_disk_that_hangs_does_not_save_a_process_from_its_end(launcher: Launcher, tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "hangs"
    folder.mkdir()
    os.mkfifo(folder / "rank-0.txt")  # to open it is to wait for a reader
    program.write_text(STUCK.format(limit=1.0, folder=folder, body="time.sleep(1000)"))
    start = time.monotonic()
    end = launcher.run(program)
    assert end.code == 1
    assert names(only_error(end), "guard.hang_seconds")
    assert time.monotonic() - start < TIMEOUT / 2


def read(folder: Path) -> str:
    return (folder / "hangs/rank-0.txt").read_text()
