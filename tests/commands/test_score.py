from __future__ import annotations

import shutil
from pathlib import Path

from tests.launching import Launcher, Run, oneflow, only_error
from tests.messages import names


def test_answers_are_scored_again_without_the_model(launcher: Launcher, evaluated: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(evaluated.folder, folder)
    for name in ("report.json", "page.png"):
        (folder / name).unlink()
    end = launcher.run(*oneflow("score"), folder)
    assert end.code == 0, end.stderr
    for name in ("report.json", "page.png"):
        assert (folder / name).read_bytes() == (evaluated.folder / name).read_bytes()
    assert "agreement" in end.stdout
    assert str(folder / "report.json") in end.stdout


def test_a_lost_answer_is_missed(launcher: Launcher, evaluated: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(evaluated.folder, folder)
    (folder / "answers/paint/000001.jsonl").unlink()
    end = launcher.run(*oneflow("score"), folder)
    assert end.code == 2
    assert names(only_error(end), "task.paint")


def test_a_folder_without_answers_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("score"), tmp_path)
    assert end.code == 2
    assert names(only_error(end), tmp_path / "suite.toml")
