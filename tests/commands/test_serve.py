"""The program that serves: what it refuses, who may ask it, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from oneflow_dist.commands.serve import TOKEN, count_devices, read_token
from tests.launching import Launcher, Run, oneflow, only_error
from tests.messages import names
from tests.processes import find_processes, is_alive, wait_until, words_of
from tools.benchmark.serving import children_of


@contextmanager
def started(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that runs, and its address."""
    env = {key: value for key, value in os.environ.items() if key != TOKEN} | {"OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *oneflow("serve"), *words, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("serving on "))
            yield process, line.split()[2]
        finally:
            process.kill()


def fetch(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def session_of(leader: int) -> list[int]:
    """Processes that a program has started, and itself, as far as they have not ended."""
    found = []
    for pid in filter(is_alive, find_processes()):
        with suppress(ProcessLookupError):
            found += [pid] if os.getsid(pid) == leader else []
    return found


def is_loading(pid: int) -> bool:
    """Whether a model's process has begun to import what takes seconds."""
    if "spawn_main" not in " ".join(words_of(pid)):
        return False
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_answers_and_ends_at_a_signal_with_all_its_processes(number: signal.Signals, unbroken: Run) -> None:
    with started(str(unbroken.folder)) as (process, url):
        body = json.dumps({"settings": {"steps": 3, "max_rows": 40}}).encode()
        request = urllib.request.Request(f"{url}v1/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["steps"] >= 3
        own = children_of(process.pid)
        assert own
        process.send_signal(number)
        assert process.wait(timeout=20) in (0, -number)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        end = time.monotonic() + 10
        while [pid for pid in own if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_beyond_this_machine_a_token_is_asked_for(unbroken: Run) -> None:
    with started(str(unbroken.folder), "--host=0.0.0.0") as (_, printed):
        url, _, token = printed.replace("0.0.0.0", "127.0.0.1").partition("?token=")
        assert len(token) >= 24
        assert fetch(url) == 200
        assert fetch(f"{url}v1/models") == 401
        assert fetch(f"{url}v1/models", Authorization=f"Bearer {token}") == 200


def test_two_runs_of_one_name_are_refused(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    other = tmp_path / unbroken.folder.name
    message = only_error(launcher.run(*oneflow("serve"), unbroken.folder, other))
    assert names(message, "RUN", unbroken.folder, other)


def test_a_folder_without_a_checkpoint_is_one_line_and_leaves_nothing_running(
    launcher: Launcher, unbroken: Run, tmp_path: Path
) -> None:
    """Not even of a model beside it that can be loaded."""
    job = launcher.start(*oneflow("serve"), tmp_path, unbroken.folder, "--port=0")
    (end,) = job.wait()
    assert (end.code, end.stderr.count("\n")) == (2, 1)
    assert names(only_error(end), tmp_path)
    wait_until(lambda: not session_of(job.pids[0]), "the end of all processes", seconds=20.0)
    assert job.streams[0][1].read_text() == end.stderr  # nor have they said anything


def test_an_interrupt_while_models_are_loaded_is_one_line(launcher: Launcher, unbroken: Run) -> None:
    """A terminal sends it to all processes."""
    job = launcher.start(*oneflow("serve"), unbroken.folder, "--port=0")
    (pid,), (_, stderr) = job.pids, job.streams[0]
    wait_until(lambda: any(is_loading(own) for own in session_of(pid)), "the model's process")
    os.killpg(pid, signal.SIGINT)
    (end,) = job.wait()
    assert end.code == 130
    wait_until(lambda: not session_of(pid), "the end of all processes", seconds=20.0)
    assert stderr.read_text() == "error: interrupted\n"


@pytest.mark.parametrize("words", [("--port=70000",), ("--writing=0",), ("--body-bytes=1",)])
def test_numbers_out_of_range_are_refused(words: tuple[str, ...], launcher: Launcher, tmp_path: Path) -> None:
    message = only_error(launcher.run(*oneflow("serve"), tmp_path, *words))
    assert names(message, words[0].partition("=")[0])


@pytest.mark.parametrize(
    ("host", "own", "asks"),
    [
        ("127.0.0.1", "", False),
        ("::1", "", False),
        ("localhost", "", False),
        ("127.0.0.1", "mine", True),
        ("0.0.0.0", "", True),
        ("example.org", "mine", True),
    ],
)
def test_a_token_is_asked_for_where_others_can_ask(
    host: str, own: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, own)
    token = read_token(host)
    assert bool(token) == asks
    assert token == own or not own


def test_models_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    assert count_devices(1)[1] == 8
    assert count_devices(3)[1] == 2
    assert count_devices(20)[1] == 1
