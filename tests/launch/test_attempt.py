"""What a launch writes down, and what it does when an attempt has ended."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.attempt import (
    AGAIN,
    FAILED,
    FINISHED,
    GAVE_UP,
    LATER,
    changes_since,
    decide,
    excluded_nodes,
    free_port,
    least_nodes,
    verdict_of,
)
from oneflow_dist.config import load_config
from oneflow_dist.verdict import tell
from tests.launching import ROOT, Launcher, only_error
from tests.messages import names, naming

DIED = {"state": "died", "saved_before": "step-00000010", "saved_after": "step-00000010"}
SAVED = {**DIED, "saved_after": "step-00000020"}
STOPPED = {"state": "stopped", "saved_before": "", "saved_after": ""}


@pytest.mark.parametrize(
    ("state", "told", "attempts", "action"),
    [
        ("finished", "", [STOPPED], FINISHED),
        ("finished", "USR1", [STOPPED], FINISHED),  # the signal came when nothing was left to do
        ("failed", "", [DIED], FAILED),
        ("failed", "USR1", [DIED], FAILED),
        ("stopped", "", [STOPPED], LATER),  # preempted: the steps alone have been told
        ("stopped", "USR1", [STOPPED], LATER),
        ("died", "USR1", [DIED], LATER),  # before there was anything to save
        ("stopped", "TERM", [STOPPED], GAVE_UP),  # cancelled
        ("died", "TERM", [DIED], GAVE_UP),
        ("unfit", "", [STOPPED], LATER),
        ("died", "", [DIED], AGAIN),
        ("hung", "", [SAVED, DIED], AGAIN),
        ("died", "", [DIED, DIED], LATER),
        ("died", "", [DIED, DIED, DIED], GAVE_UP),
        ("died", "", [DIED, DIED, SAVED], AGAIN),  # what comes forward may die as often as it likes
        ("died", "", [DIED, DIED, STOPPED, DIED], AGAIN),
    ],
)
def test_what_follows_an_attempt(state: str, told: str, attempts: list[dict[str, str]], action: int) -> None:
    earlier, last = attempts[:-1], attempts[-1]
    assert decide(state, told, [*earlier, {**last, "state": state}], budget=9)[0] == action


@pytest.mark.parametrize(
    ("state", "told", "nodes", "least", "action"),
    [
        ("unfit", "", 4, 4, LATER),
        ("unfit", "", 4, 3, AGAIN),
        ("unfit", "", 3, 3, LATER),  # one less would be too few
        ("unfit", "USR1", 4, 3, LATER),
        ("failed", "", 4, 3, FAILED),
        ("failed", "", 3, 3, LATER),  # as a layout that does not suit so few
        ("failed", "TERM", 3, 3, GAVE_UP),
        ("died", "", 3, 3, AGAIN),  # the launcher looks who is there
    ],
)
def test_what_follows_where_fewer_nodes_are_allowed(state: str, told: str, nodes: int, least: int, action: int) -> None:
    attempt = {**DIED, "state": state, "nodes": nodes, "all_nodes": 4}
    assert decide(state, told, [attempt], budget=9, least=least)[0] == action


def test_the_least_number_of_nodes_is_one_of_theirs_and_all_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert least_nodes(4) == 4
    for wanted in ("", "4"):
        monkeypatch.setenv("ONEFLOW_MIN_NODES", wanted)
        assert least_nodes(4) == 4
    monkeypatch.setenv("ONEFLOW_MIN_NODES", "1")
    assert least_nodes(4) == 1
    for wrong in ("0", "5", "some", "-1", "1.5"):
        monkeypatch.setenv("ONEFLOW_MIN_NODES", wrong)
        with pytest.raises(ValueError, match=naming("ONEFLOW_MIN_NODES", wrong, 4)):
            least_nodes(4)


def test_unfit_nodes_are_read_without_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_EXCLUDE", str(tmp_path / "excluded"))
    assert excluded_nodes() == []
    (tmp_path / "excluded").write_text("node7  # 2026-01-01 ECC\n\n# by hand\nnode9\n")
    assert excluded_nodes() == ["node7", "node9"]


def test_restarts_have_a_budget() -> None:
    assert decide("stopped", "", [STOPPED] * 3, budget=3)[0] == LATER
    action, why = decide("stopped", "", [STOPPED] * 4, budget=3)
    assert action == GAVE_UP
    assert names(why, "ONEFLOW_REQUEUES", 3)


def test_what_would_fail_again_counts_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_ATTEMPT", str(tmp_path))
    assert verdict_of(tmp_path, code=1)[0] == "died"
    assert verdict_of(tmp_path, code=2)[0] == "failed"  # before there were ranks
    for rank, state, expected in ((3, "hung", "hung"), (0, "finished", "finished"), (12, "failed", "failed")):
        monkeypatch.setenv("RANK", str(rank))
        tell(state, f"of rank {rank}")  # type: ignore[arg-type]
        assert verdict_of(tmp_path, code=0) == (expected, f"of rank {rank}")


def begin(launcher: Launcher, command: list[str], **env: str) -> Path:
    """The folder of one more attempt."""
    end = launcher.run("launch/attempt.py", "begin", *command, env={"ONEFLOW_LAUNCH": "job-7", **env})
    assert end.code == 0, end.stderr
    port, folder = end.stdout.split()
    assert 1024 <= int(port) < 65536
    return Path(folder)


def test_an_attempt_can_be_repeated_from_what_it_wrote_down(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = train_command(tmp_path / "run", "optim.lr=0.5")[2:]
    secrets = {"WANDB_API_KEY": "planted-1", "SLURM_JWT": "planted-2", "ONEFLOW_TOKEN": "planted-3"}
    folder = begin(launcher, command, NCCL_DEBUG="INFO", ONEFLOW_COMMAND="as typed", **secrets)
    assert folder == tmp_path / "run/launches/job-7/attempt-0"
    assert load_config(folder / "config.toml") == load_config(ROOT / command[0], command[1:])
    assert "NCCL_DEBUG=INFO\n" in (folder / "environment.txt").read_text()
    attempt = json.loads((folder / "attempt.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (attempt["command"], attempt["commit"], attempt["saved_before"]) == ("as typed", commit.strip(), "")
    assert not any(b"planted" in path.read_bytes() for path in folder.iterdir())
    (folder / "attempt.json").unlink()  # as where the disk was full
    assert begin(launcher, command).name == "attempt-1"


def test_what_runs_now_and_did_not_before_is_told(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = begin(launcher, train_command(tmp_path / "run")[2:])
    path = folder / "attempt.json"
    versions = {key: json.loads(path.read_text())[key] for key in ("commit", "torch", "python")}
    assert changes_since(tmp_path / "run", versions) == []
    (line,) = changes_since(tmp_path / "run", {**versions, "torch": "2.99"})
    assert names(line, "torch", "2.99", versions["torch"])


def test_an_attempt_ends_with_a_line_and_a_code(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = begin(launcher, train_command(tmp_path / "run")[2:])
    (folder / "verdict-0.json").write_text(json.dumps({"state": "stopped", "message": "by SIGUSR1 after step 7"}))
    (tmp_path / "run/last_checkpoint").write_text("step-00000007\n")
    (folder.parent / "attempt-1").mkdir()  # it broke off
    # As on a host: no package of ours, nor any other.
    command = [sys.executable, "-I", "-S", str(ROOT / "launch/attempt.py"), "end", str(folder), "--code", "143"]
    end = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert end.returncode == LATER, end.stderr
    assert names(end.stdout, "stopped", "SIGUSR1", "step-00000007")
    assert json.loads((folder / "attempt.json").read_text())["saved_after"] == "step-00000007"


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match=naming("ONEFLOW_PORT", port)):
            free_port(port)
    assert free_port(port) == int(port)
    assert free_port("") != 0


@pytest.mark.parametrize(
    ("config", "folder", "named"),
    [("configs/nowhere.toml", "run", "configs/nowhere.toml"), ("configs/debug.toml", "/proc/run", "/proc/run")],
)
def test_nothing_begins_without_a_config_or_a_folder(
    launcher: Launcher, tmp_path: Path, config: str, folder: str, named: str
) -> None:
    end = launcher.run("launch/attempt.py", "begin", config, f"run.folder={tmp_path / folder}")
    assert end.code == 2
    assert names(only_error(end), named)
    assert end.stdout == ""
    assert list(tmp_path.iterdir()) == []
