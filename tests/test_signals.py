from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneflow_dist.signals import PASSED_ON_SECONDS, STOP_SIGNALS, StopSignals
from tests.launching import ENVIRONMENT, ROOT, TIMEOUT, hear_hangups
from tests.messages import names
from tests.processes import is_alive, wait_until

# Says "ready", then sleeps where no bytecode of its main thread runs, as in a collective.
PROGRAM = """
import signal, sys, time
from oneflow_dist.signals import StopSignals, end_with_parent, ignore_stop_signals

signals = StopSignals()
{body}
print("ready", flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [])
import ctypes
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    ctypes.CDLL(None).usleep(200_000)
    if signals.name and {leaves}:
        print(signals.name)
        break
"""


def start(*body: str, leaves: str = "True", nohup: bool = False) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*["nohup"] * nohup, sys.executable, "-c", PROGRAM.format(body="\n".join(body), leaves=leaves)],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_hangups,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_the_loop_a_signal_ends_the_process_with_one_line(number: signal.Signals) -> None:
    process = start("signals.listen()")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + number
    assert stdout == ""
    assert names(stderr.strip(), number.name)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_in_the_loop_a_signal_is_noted_and_one_that_is_passed_on_at_once_changes_nothing(
    number: signal.Signals,
) -> None:
    process = start("signals.listen()", "signals.begin()", leaves="sys.stdin.readline()")
    process.send_signal(number)
    process.send_signal(number)
    stdout, _ = process.communicate("it may end\n", timeout=TIMEOUT)
    assert (process.returncode, stdout) == (0, f"{number.name}\n")


def test_the_same_signal_again_ends_a_process_that_does_not_come_to_its_end() -> None:
    process = start("signals.listen()", "signals.begin()", leaves="False")
    process.send_signal(signal.SIGINT)
    time.sleep(PASSED_ON_SECONDS + 0.2)
    process.send_signal(signal.SIGTERM)  # another signal is not the same wish again
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGINT
    assert names(stderr.splitlines()[-1], "SIGINT")


@pytest.mark.parametrize(
    ("body", "number", "nohup"),
    [
        (("signals.listen()", "signals.begin()", "signals.end()"), signal.SIGTERM, False),
        (("signals.listen()",), signal.SIGHUP, True),
    ],
    ids=["the loop is over", "nohup ignores it"],
)
def test_a_signal_that_comes_too_late_or_is_to_be_ignored_changes_nothing(
    body: tuple[str, ...], number: signal.Signals, nohup: bool
) -> None:
    process = start(*body, leaves="False", nohup=nohup)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_process_of_torchrun_is_asked_to_stop_when_torchrun_is_gone() -> None:
    """Here `sh` stands for torchrun, and is killed."""
    program = PROGRAM.format(body="signals.listen()", leaves="False")
    shell = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, program],
        cwd=ROOT,
        env={**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "a run"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == "ready\n"
    shell.kill()
    _, stderr = shell.communicate(timeout=TIMEOUT)  # until its child has closed it, too
    assert names(stderr.strip(), "SIGTERM")


def test_who_does_not_listen_has_been_asked_nothing() -> None:
    assert StopSignals().name == ""


def test_a_helper_ignores_the_signals_and_is_killed_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = (
        "import os",
        "signals.listen()",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
        "pid = os.fork()",
        "if pid == 0:",
        "    ignore_stop_signals()",
        f"    open({str(pid_file)!r}, 'w').write(str(os.getpid()))",
        "    time.sleep(60)",
    )
    process = start(*body, leaves="False")
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the helper")
    helper = int(pid_file.read_text())
    for number in STOP_SIGNALS:
        os.kill(helper, number)
    time.sleep(0.3)
    assert is_alive(helper)
    assert process.poll() is None  # and its parent has not heard of them
    process.kill()
    process.communicate()
    wait_until(lambda: not is_alive(helper), "its end")
