"""The loop over hosts; tests/torture/faults.py has it with real ranks on nodes that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import hosts
from launch.attempt import FAILED, FINISHED, LATER
from launch.hosts import answering, launch
from tests.launching import ROOT
from tests.messages import names, naming
from tests.processes import wait_until

# A host that has a file "lost" does not answer; of one that has "stuck" nobody knows.
REMOTE = """#!/bin/sh
[ ! -e {folder}/$1.lost ] || exit 255
[ ! -e {folder}/$1.stuck ] || exec sleep 600
exec sh -c "$2"
"""
# launch/node.sh: what a host does in an attempt is in a file of its name and of the attempt's number.
NODE = """#!/bin/sh
case $1 in
begin)
    number=$(ls -d {folder}/attempt-* 2>/dev/null | wc -l)
    mkdir {folder}/attempt-$number
    echo '{{"run": "{folder}", "nodes": '$NNODES', "all_nodes": '$ONEFLOW_NODES', "saved_before": ""}}' \\
        > {folder}/attempt-$number/attempt.json
    echo 4000 {folder}/attempt-$number
    ;;
*)
    echo $1 of $NNODES on $ONEFLOW_NODE as $NODE_RANK by $MASTER_ADDR:$MASTER_PORT >> {folder}/said
    todo={folder}/todo-${{ONEFLOW_ATTEMPT##*-}}-$ONEFLOW_NODE-$1
    [ ! -e $todo ] || . $todo
    ;;
esac
"""
SAYS = """echo '{{"state": "{state}", "message": ""}}' > $ONEFLOW_ATTEMPT/verdict-0.json"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hosts a, b and c do what is written there."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch/host.sh", tmp_path / "launch/host.sh")
    for path, text in ((tmp_path / "remote", REMOTE), (tmp_path / "launch/node.sh", NODE)):
        path.write_text(text.format(folder=tmp_path))
        path.chmod(0o755)
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("ONEFLOW_REMOTE", str(tmp_path / "remote"))
    monkeypatch.setenv("ONEFLOW_EXCLUDE", str(tmp_path / "excluded"))
    monkeypatch.setenv("ONEFLOW_HEALTH", "off")
    return tmp_path


def plan(folder: Path, attempt: int, host: str, what: str = "train", state: str = "finished", then: str = "") -> None:
    """What a host does in an attempt: rank 0's verdict, then a line of shell."""
    said = SAYS.format(state=state) if state else ""
    (folder / f"todo-{attempt}-{host}-{what}").write_text(f"{said}\n{then}\n")


def said(folder: Path) -> list[str]:
    path = folder / "said"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_every_host_gets_its_part_and_the_first_is_the_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_HEALTH", "on")
    plan(folder, 0, "b")
    assert launch(["me@a", "b"], ["x.toml"]) == FINISHED
    assert said(folder) == [
        "health of 2 on b as 1 by a:4000",
        "health of 2 on me@a as 0 by a:4000",
        "train of 2 on b as 1 by a:4000",
        "train of 2 on me@a as 0 by a:4000",
    ]


LOSES_A = "touch {folder}/a.lost; exit 1"


def test_a_host_that_is_lost_ends_the_launch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(folder, 0, "a", state="", then=LOSES_A.format(folder=folder))
    assert launch(["a", "b", "c"], ["x.toml"]) == LATER
    assert names(capsys.readouterr().out.splitlines()[-1], "a", 2, 3)
    assert len(said(folder)) == 3


def test_a_launch_goes_on_without_a_host_that_is_lost_where_so_few_are_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEFLOW_MIN_NODES", "2")
    plan(folder, 0, "a", state="", then=LOSES_A.format(folder=folder))
    plan(folder, 1, "b")
    assert launch(["a", "b", "c"], ["x.toml"]) == FINISHED
    assert any(names(line, 2, 3, "without a") for line in capsys.readouterr().out.splitlines())
    assert {line for line in said(folder) if " of 2 " in line} == {
        "train of 2 on b as 0 by b:4000",
        "train of 2 on c as 1 by b:4000",
    }


def test_an_unfit_host_is_left_out_where_fewer_are_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONEFLOW_HEALTH", "on"), ("ONEFLOW_MIN_NODES", "1")):
        monkeypatch.setenv(name, value)
    plan(folder, 0, "a", "health", "unfit", f"echo 'b  # ECC' > {folder}/excluded; exit 3")
    plan(folder, 1, "a")
    assert launch(["a", "b"], ["x.toml"]) == FINISHED
    assert [line for line in said(folder) if "train" in line] == ["train of 1 on a as 0 by a:4000"]


def test_what_fails_on_fewer_hosts_may_yet_go_well_on_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(folder, 0, "a", state="failed", then="exit 2")
    assert launch(["a", "b"], ["x.toml"]) == FAILED
    monkeypatch.setenv("ONEFLOW_MIN_NODES", "1")
    (folder / "b.lost").touch()
    plan(folder, 1, "a", state="failed", then="exit 2")
    assert launch(["a", "b"], ["x.toml"]) == LATER


def test_hosts_that_do_not_end_with_the_others_are_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "WAIT_SECONDS", 0.5)
    monkeypatch.setenv("ONEFLOW_REQUEUES", "0")
    plan(folder, 0, "a", state="", then="exit 1")
    plan(folder, 0, "b", state="", then=f"trap '' TERM; echo $$ > {folder}/pid; sleep 600 & wait; sleep 600")
    assert launch(["a", "b"], ["x.toml"]) == 1
    assert not Path("/proc", (folder / "pid").read_text().strip()).exists()


def test_who_is_asked_answers_in_time_or_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "ANSWER_SECONDS", 2.0)
    (folder / "b.lost").touch()
    (folder / "c.stuck").touch()
    assert answering(["a", "b", "c", "d"]) == ["a", "d"]


def test_a_number_of_hosts_that_is_none_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_MIN_NODES", "3")
    with pytest.raises(ValueError, match=naming("ONEFLOW_MIN_NODES", 3, 2)):
        launch(["a", "b"], ["x.toml"])


HEARS = "trap 'echo USR1 >> {folder}/heard; exit 0' USR1; touch {folder}/ready-$ONEFLOW_NODE; sleep 600 & wait"


def test_signals_reach_every_host_and_nothing_follows(folder: Path) -> None:
    for host in "ab":
        plan(folder, 0, host, state="stopped", then=HEARS.format(folder=folder))
    code = "from launch import hosts; from pathlib import Path; hosts.ROOT = Path({folder!r}); hosts.main()"
    command = [sys.executable, "-c", code.format(folder=str(folder)), "a,b", "x.toml"]
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ))
    wait_until(lambda: all((folder / f"ready-{host}").exists() for host in "ab"), "both hosts")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == LATER
    assert (folder / "heard").read_text() == "USR1\nUSR1\n"


@pytest.mark.parametrize(("words", "code"), [(b"USR1\n", 5), (b"", 6), (b"KILL\n", 137)], ids=["USR1", "end", "KILL"])
def test_what_comes_on_stdin_is_a_signal_and_its_end_is_sigterm(tmp_path: Path, words: bytes, code: int) -> None:
    script = f"trap 'exit 5' USR1; trap 'exit 6' TERM; touch {tmp_path}/ready; while true; do sleep 0.05; done"
    process = subprocess.Popen([ROOT / "launch/host.sh", "bash", "-c", script], stdin=subprocess.PIPE)
    wait_until((tmp_path / "ready").exists, "the program")
    assert process.stdin is not None
    process.stdin.write(words)
    process.stdin.flush()
    if not words:
        process.stdin.close()
    assert process.wait(60) == code
    process.stdin.close()


def test_the_code_of_a_program_that_ends_by_itself_is_that_of_the_host(tmp_path: Path) -> None:
    with subprocess.Popen([ROOT / "launch/host.sh", "sh", "-c", "exit 7"], stdin=subprocess.PIPE) as process:
        assert process.wait(60) == 7


def test_the_attempt_tells_on_how_many_of_its_hosts_it_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_MIN_NODES", "1")
    (folder / "a.lost").touch()
    plan(folder, 0, "b")
    assert launch(["a", "b"], ["x.toml"]) == FINISHED
    attempt = json.loads((folder / "attempt-0/attempt.json").read_text())
    assert (attempt["nodes"], attempt["all_nodes"], attempt["state"]) == (1, 2, "finished")
