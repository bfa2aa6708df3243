from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from oneflow_dist.commands.prepare import main
from oneflow_dist.prepare.work import FOLDER
from tests.launching import Finished, Launcher, oneflow, only_error, read_metrics
from tests.messages import names
from tests.prepare.nasty import bomb, turned
from tests.prepare.prepared import contents, write_pairs
from tests.processes import children, is_alive, wait_until

TOOL = oneflow("prepare")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts of work, with a picture that is turned, one that is refused, and one twice."""
    folder = write_pairs(tmp_path_factory.mktemp("mine") / "photos", 300)
    (folder / "0007.jpg").write_bytes(turned(6))
    (folder / "0007.png").unlink()
    (folder / "0009.png").write_bytes(bomb())
    (folder / "0011.png").write_bytes((folder / "0012.png").read_bytes())
    return folder


def start(launcher: Launcher, pairs: Path, folder: Path, *more: str) -> Finished:
    return launcher.run(*TOOL, pairs, "toy", "--size", "16", *more, folder=folder)


@pytest.fixture(scope="module")
def unbroken(launcher: Launcher, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    folder = tmp_path_factory.mktemp("unbroken")
    end = start(launcher, pairs, folder, "--workers", "1")
    assert end.code == 0, end.stderr
    return folder, end


def test_a_folder_becomes_shards_a_config_and_a_page(unbroken: tuple[Path, Finished]) -> None:
    folder, end = unbroken
    files = {"problems.jsonl", "duplicates.jsonl", "settings.json", "summary.md", "contact_sheet.png", "words.tiktoken"}
    recipe = {"mixture.yaml", "heldout.yaml", "config.toml"}
    shards = {f"{split}-000000.tar{end}" for split in ("train", "heldout") for end in ("", ".index")}
    assert set(contents(folder / "toy")) == files | recipe | shards
    assert (folder / "toy/summary.md").read_text() in end.stdout
    assert "300/300" in end.stderr
    assert end.stdout.splitlines()[-1] == "next: oneflow train toy/config.toml"
    assert len(end.stdout.splitlines()) <= 42


def test_the_next_commands_train_and_draw(unbroken: tuple[Path, Finished], launcher: Launcher) -> None:
    folder, end = unbroken
    train, sample = (line.split() for line in end.stdout.splitlines() if line.startswith("    oneflow "))
    small = ["train.steps=2", "sampling.every_steps=0", "validation.every_steps=2", "validation.samples=4"]
    trained = launcher.run("-m", "oneflow_dist.train", *train[2:], *small, folder=folder)
    assert trained.code == 0, trained.stderr
    assert "validation/pairs/loss" in read_metrics(folder / "runs/toy")[-1]
    words = " ".join(sample).split("'")[1]
    drawn = launcher.run(
        *oneflow("sample"), "runs/toy", "out", "--text", words, "--paint", "--steps", "2", folder=folder
    )
    assert drawn.code == 0, drawn.stderr
    assert (folder / "out/0000-image-0.png").exists()


def test_runs_that_are_killed_and_have_other_workers_come_to_the_same_bytes(
    launcher: Launcher, pairs: Path, unbroken: tuple[Path, Finished], tmp_path: Path
) -> None:
    for workers, seconds in (("2", 0.0), ("1", 0.2), ("2", 0.5), ("3", 0.9), ("1", 0.6), ("2", 1.2)):
        job = launcher.start(*TOOL, pairs, "toy", "--size", "16", "--workers", workers, folder=tmp_path)
        wait_until(lambda: (tmp_path / "toy/settings.json").exists(), "settings", pause=0.001)
        time.sleep(seconds)
        job.kill()
        job.wait()
    end = start(launcher, pairs, tmp_path, "--workers", "2")
    assert end.code == 0, end.stderr
    assert contents(tmp_path / "toy") == contents(unbroken[0] / "toy")
    assert end.stdout == unbroken[1].stdout


def test_workers_end_with_the_program_that_started_them(launcher: Launcher, pairs: Path, tmp_path: Path) -> None:
    job = launcher.start(*TOOL, pairs, "toy", "--size", "16", "--workers", "2", folder=tmp_path)
    wait_until(lambda: list(tmp_path.glob(f"toy/{FOLDER}/*.json")), "a part", pause=0.001)
    servers = children(job.pids[0])
    workers = [worker for server in servers for worker in children(server)]
    os.kill(job.pids[0], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in (*servers, *workers)), "the end of all", seconds=30)
    job.wait()


def test_a_complete_output_is_told_of_again(launcher: Launcher, pairs: Path, unbroken: tuple[Path, Finished]) -> None:
    before = contents(unbroken[0] / "toy")
    assert start(launcher, pairs, unbroken[0]).stdout == unbroken[1].stdout
    assert contents(unbroken[0] / "toy") == before


def test_other_options_are_an_error_that_names_both(
    launcher: Launcher, pairs: Path, unbroken: tuple[Path, Finished]
) -> None:
    end = launcher.run(*TOOL, pairs, "toy", "--size", "32", folder=unbroken[0])
    assert (end.code, names(only_error(end), "toy/settings.json", "16", "32")) == (2, True)


def test_help_does_not_wait_for_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["prepare", "--help"])
    before = set(sys.modules)
    with pytest.raises(SystemExit):
        main()
    assert "--held-out" in capsys.readouterr().out
    assert "torch" not in set(sys.modules) - before
