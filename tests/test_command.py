"""The command `oneflow`: it finds programs, and shells find what they take."""

from __future__ import annotations

import importlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist import command
from oneflow_dist.command import COMMANDS, SHELLS
from oneflow_dist.version import package_version
from tests.launching import Launcher, read_metrics
from tests.messages import naming

ROOT = Path(__file__).parents[1]
ONEFLOW = [sys.executable, "-m", "oneflow_dist.command"]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ONEFLOW, *words], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_program(name: str) -> None:
    module = importlib.import_module(COMMANDS[name][0])
    assert callable(module.main)


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_help_lists_every_command_with_a_line(words: tuple[str, ...]) -> None:
    end = call(*words)
    assert end.returncode == 0
    for name, (_, what) in COMMANDS.items():
        assert any(line.split()[:1] == [name] and what in line for line in end.stdout.splitlines())


def test_the_version_is_that_of_the_package() -> None:
    assert call("--version").stdout.startswith("oneflow_dist 0.")


def test_the_version_has_a_commit_where_one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, end in (("0123abc", ", commit 0123abc"), ("", package_version())):
        monkeypatch.setattr(command, "current_commit", lambda _, commit=commit: commit)
        assert command.describe_version().startswith(f"oneflow_dist {package_version()}")
        assert command.describe_version().endswith(end)


def test_no_help_loads_torch() -> None:
    script = (
        "import sys\nfrom contextlib import suppress\nfrom oneflow_dist.command import COMMANDS, start\n"
        "for name in COMMANDS:\n    with suppress(SystemExit):\n        start(name, ['--help'])\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    end = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert end.returncode == 0, end.stderr


def test_another_package_of_the_name_tools_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/__init__.py").touch()
    end = subprocess.run([*ONEFLOW, "experiment", "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert end.returncode == 0, end.stderr


def test_ranks_of_torchrun_train(train_command: Callable[..., list[str]], launcher: Launcher, tmp_path: Path) -> None:
    _, _, *words = train_command(tmp_path / "run", "train.steps=1", "sampling.every_steps=0")
    ends = launcher.run_ranks(2, "-m", "oneflow_dist.command", "train", *words)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    assert len(read_metrics(tmp_path / "run")) == 1


def test_a_program_is_called_as_it_would_be_alone() -> None:
    own = call("sample", "--help")
    assert own.returncode == 0
    assert own.stdout.startswith("usage: oneflow sample ")


def test_what_a_program_refuses_ends_as_it_does_alone() -> None:
    end = call("train", "no_such_config.toml")
    assert (end.returncode, end.stderr.count("\n")) == (2, 1)
    assert "no_such_config.toml" in end.stderr


@pytest.mark.parametrize(("name", "near"), [("smaple", "sample"), ("trian", "train"), ("xyzzy", "--help")])
def test_an_unknown_command_is_one_line_with_the_nearest(name: str, near: str) -> None:
    end = call(name)
    assert (end.returncode, end.stdout, end.stderr.count("\n")) == (2, "", 1)
    assert name in end.stderr
    assert near in end.stderr


def test_without_a_checkout_a_tool_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=naming("oneflow experiment", "tools/experiment.py", "clone")):
        command.load("experiment")


# Completion.


def complete(line: str, folder: Path = ROOT) -> set[str]:
    """What a shell offers at the end of a line; it reads descriptor 8."""
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line.encode())), "_ARGCOMPLETE": "1"}
    env |= {"_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    script = 'exec 8>&1 9>/dev/null >/dev/null; exec "$@"'
    words = ["bash", "-c", script, "bash", *ONEFLOW]
    end = subprocess.run(words, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert end.returncode == 0, end.stderr
    return {word.strip() for word in end.stdout.splitlines()}


def test_commands_are_completed() -> None:
    assert complete("oneflow sam") == {"sample"}
    assert set(COMMANDS) <= complete("oneflow ")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("oneflow sample --te", {"--text", "--temperature"}),
        ("oneflow sample --firing ", {"systematic", "independent"}),
        ("oneflow train configs/quick", {"configs/quickstart.toml"}),
        ("oneflow train --dry", {"--dry-run"}),
        ("oneflow serve --ho", {"--host"}),
        ("oneflow benchmark laten", {"latency"}),
        ("oneflow benchmark latency --te", {"--texts"}),
        ("oneflow benchmark ", {"latency", "train"}),
        ("oneflow benchmark latency ", {"--texts"}),
        ("oneflow completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_options_values_and_files_of_a_command_are_completed(line: str, offered: set[str]) -> None:
    assert offered <= complete(line)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    end = call("completion", shell)
    assert end.returncode == 0
    assert "oneflow" in end.stdout
    assert "_ARGCOMPLETE" in end.stdout


def test_bash_takes_what_it_is_told() -> None:
    script = f'eval "$({sys.executable} -m oneflow_dist.command completion bash)"; complete -p oneflow'
    end = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert end.returncode == 0, end.stderr
    assert end.stdout.strip().endswith("oneflow")


@pytest.mark.parametrize("words", [("tcsh",), ("bash", "tcsh")])
def test_a_shell_that_is_not_known_is_refused(words: tuple[str, ...]) -> None:
    end = call("completion", *words)
    assert (end.returncode, end.stdout) == (2, "")
    assert "tcsh" in end.stderr


@pytest.mark.parametrize(("typed", "becomes"), [("oneflow sam", "sample "), ("oneflow sample --tex", "--text ")])
def test_an_interactive_bash_completes_what_is_typed(typed: str, becomes: str, tmp_path: Path) -> None:
    (tmp_path / "oneflow").write_text(f'#!/bin/sh\nexec {sys.executable} -m oneflow_dist.command "$@"\n')
    (tmp_path / "oneflow").chmod(0o755)
    (tmp_path / "rc").write_text('bind "set bell-style none"\nPS1="$ "\neval "$(oneflow completion bash)"\n')
    process, terminal = pty.fork()
    if process == 0:
        env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb"}
        os.chdir(ROOT)
        os.execvpe("bash", ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"], env)
    try:
        assert "$ " in shown_until(terminal, "$ ")
        os.write(terminal, f"{typed}\t".encode())
        wanted = typed.rpartition(" ")[0] + " " + becomes
        assert wanted in shown_until(terminal, wanted)
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(process, 0)


def shown_until(terminal: int, text: str) -> str:
    """What a terminal shows, up to a text or for as long as is patient."""
    shown, deadline = "", time.monotonic() + 30.0
    while text not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
