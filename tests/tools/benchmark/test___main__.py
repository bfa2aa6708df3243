"""The one command: its overview, its refusals, and what every command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import Launcher, only_error
from tools.benchmark.__main__ import COMMANDS, main
from tools.benchmark.lines import Notebook
from tools.benchmark.report import of_kind


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_of_its_own(command: str, launcher: Launcher) -> None:
    overview = launcher.run("-m", "tools.benchmark", "--help")
    own = launcher.run("-m", "tools.benchmark", command, "--help")
    assert (overview.code, own.code) == (0, 0)
    assert command in overview.stdout
    assert f"tools.benchmark {command}" in own.stdout


@pytest.mark.parametrize("words", [(), ("flops",)])
def test_the_usage_names_what_was_called(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["oneflow benchmark", *words, "--help"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.startswith(" ".join(["usage: oneflow benchmark", *words, "[-h]"]))


def test_a_word_that_is_no_command_is_refused(launcher: Launcher) -> None:
    end = launcher.run("-m", "tools.benchmark", "trian")
    assert end.code == 2
    assert "trian" in end.stderr
    assert "flops" in end.stderr


@pytest.mark.parametrize("option", ["--text-tokens=0", "--documents=many", "--image-rows=-1"])
def test_a_number_that_cannot_be_is_refused(launcher: Launcher, option: str) -> None:
    end = launcher.run("-m", "tools.benchmark", "flops", "configs/debug.toml", option)
    assert end.code == 2
    assert option.split("=")[0] in end.stderr


def test_a_config_that_is_not_there_is_said_in_one_line(launcher: Launcher) -> None:
    end = launcher.run("-m", "tools.benchmark", "flops", "configs/no-such.toml")
    assert end.code == 2
    assert "configs/no-such.toml" in only_error(end)


def test_a_result_says_what_made_it(launcher: Launcher, tmp_path: Path) -> None:
    words = ["flops", "configs/debug.toml", "--documents=32", "--text-tokens=9", "flow.keep_schedule=cosine"]
    end = launcher.run("-m", "tools.benchmark", *words, f"--output={tmp_path}", "--commit=0123abc")
    assert end.code == 0, end.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "report.md", "plot.png"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["command"][3 : 3 + len(words)] == words
    assert result["config"]["flow"]["keep_schedule"] == "cosine"
    assert (result["machine"]["commit"], result["machine"]["ranks"]) == ("0123abc", 1)
    assert (tmp_path / "report.md").read_text() in end.stdout


def test_kernels_are_checked_and_nothing_checked_is_not_right(launcher: Launcher, tmp_path: Path) -> None:
    check = ("-m", "tools.benchmark", "kernels", "--check", "--output", tmp_path, "--config", "configs/debug.toml")
    end = launcher.run(*check, "--only", "draws")
    assert end.code == 0, end.stderr
    assert "| drawn tokens, bfloat16 |" in (tmp_path / "report.md").read_text()
    assert of_kind(Notebook(tmp_path).lines, "contender") == []
    assert launcher.run(*check, "--only", "no such job").code == 1  # nothing is known to be right
