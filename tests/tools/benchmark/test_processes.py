"""Jobs as real processes, which here sleep; and the whole program, killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import is_alive, wait_until
from tools.benchmark.lines import LINES, REPORT
from tools.benchmark.processes import Child, Machine, environment
from tools.benchmark.report import Line
from tools.benchmark.schedule import Schedule

REHEARSAL = Path(__file__).with_name("rehearsal.py")
KILLS, SPEED = 20, 100.0

# A program that does what the name of its job says.
STAND_IN = """
import json, os, subprocess, sys, time
name = json.loads(sys.argv[-1])["job"]["name"]
print("this is", name, file=sys.stderr, flush=True)

def say(**line):
    print(json.dumps(line), flush=True)
    sys.stdin.readline()

if name == "fails":
    say(kind="failure", reason="OutOfMemoryError: CUDA out of memory.")
    sys.exit(1)
if name == "dies":
    say(kind="rate", value=1)
    os.kill(os.getpid(), 9)
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(kind="rate", value=child.pid)
    time.sleep(60)
say(kind="ready")
say(kind="rate", value=2)
"""


@dataclass(frozen=True)
class Job:
    name: str
    gib: float = 1.0
    measures: float = 1.0
    after: tuple[str, ...] = ()


def run_all(names: Sequence[str], folder: Path, seconds: float = 60.0) -> list[Line]:
    lines: list[Line] = []
    machine = Machine({}, 4, folder / "log.txt", (sys.executable, "-c", STAND_IN))
    Schedule([Job(name) for name in names], machine, lines.append, 4, seconds).run()
    return lines


def ends(lines: list[Line]) -> dict[str, str]:
    return {line["job"]: line["reason"] or line["status"] for line in lines if line["kind"] == "end"}


def test_a_job_that_fails_or_dies_loses_only_itself_and_keeps_its_numbers(tmp_path: Path) -> None:
    lines = run_all(["fails", "dies", "works"], tmp_path)
    assert ends(lines) == {
        "fails": "OutOfMemoryError: CUDA out of memory.",
        "dies": "ended with code -9 and no error; see the log",
        "works": "measured",
    }
    assert {line["job"]: line["value"] for line in lines if line["kind"] == "rate"} == {"dies": 1, "works": 2}
    assert "this is works" in (tmp_path / "log.txt").read_text()


def test_what_is_stopped_at_the_end_of_the_time_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    lines = run_all(["hangs"], tmp_path, seconds=3.0)
    assert ends(lines) == {"hangs": "stopped at the end of the time"}
    (child,) = (line["value"] for line in lines if line["kind"] == "rate")
    wait_until(lambda: not is_alive(child), "the end of its child", seconds=5.0)


def test_a_process_that_is_paused_does_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    script = "import time\nfor n in range(1000): print({}, flush=True); time.sleep(0.01)"
    with (tmp_path / "log").open("wb") as log:
        child = Child([sys.executable, "-c", script], log, os.environ)
    wait_until(child.messages, "its first message", seconds=20.0)
    child.pause()
    time.sleep(0.1)
    child.messages()
    time.sleep(0.2)
    assert child.messages() == []
    child.resume()
    time.sleep(0.5)
    assert child.messages() != []
    assert child.code() is None
    child.kill()
    assert child.code() == -signal.SIGKILL


def test_jobs_share_a_cache_outside_of_the_results_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = environment(8)
    assert found["TORCHINDUCTOR_COMPILE_THREADS"] == "2"
    assert found["GLOO_SOCKET_IFNAME"] == found["NCCL_SOCKET_IFNAME"] == "lo"
    assert Path(found["TRITON_CACHE_DIR"]).parent == Path(found["TORCHINDUCTOR_CACHE_DIR"]).parent


def of_session(leader: int) -> list[int]:
    """Processes of the session that `leader` began, itself among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def kill_session(leader: int) -> None:
    while pids := of_session(leader):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def rehearse_until(folder: Path, part: str, seconds: float) -> int:
    """Kill the rehearsal of a part after so many seconds; how many numbers it had by then, none of them lost."""
    folder.mkdir()
    command = [sys.executable, str(REHEARSAL), str(folder), part, str(SPEED)]
    with subprocess.Popen(command, start_new_session=True) as program:
        wait_until((folder / "results" / LINES).exists, "its first results", seconds=60.0)
        time.sleep(seconds)
        kill_session(program.pid)
    told = [line for path in folder.glob("*.told") for line in path.read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "results" / LINES).read_text().splitlines()]
    written = {line.get("name") for line in lines}
    assert set(told) <= written
    report = (folder / "results" / REPORT).read_text() if told else ""
    assert [name for name in told if f"| {name} |" not in report] == []
    return len(told)


def test_whenever_it_is_killed_every_number_that_was_told_is_in_the_files(tmp_path: Path) -> None:
    chance = random.Random(0)
    moments = [chance.uniform(0.0, 500.0 / SPEED) for _ in range(KILLS)]

    def kill(number: int) -> int:
        part = ("first", "second")[number % 2]
        return rehearse_until(tmp_path / str(number), part, moments[number])

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(kill, range(KILLS)))
    assert len(counts) == KILLS
    assert sum(count > 0 for count in counts) > KILLS / 2
