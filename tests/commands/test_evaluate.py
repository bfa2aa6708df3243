from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.launching import Launcher, Run, oneflow, only_error
from tests.messages import names
from tests.processes import wait_until


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is written but seconds."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".seconds." not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_write_the_same_report_to_the_bit(
    num_ranks: int,
    launcher: Launcher,
    unbroken: Run,
    suite_path: Path,
    evaluated: Run,
    tmp_path: Path,
) -> None:
    ends = launcher.run_ranks(
        num_ranks,
        *oneflow("evaluate"),
        unbroken.folder,
        "--suite",
        suite_path,
        "--output",
        tmp_path / "out",
    )
    assert [end.code for end in ends] == [0] * num_ranks, ends[0].stderr
    assert files_of(tmp_path / "out") == files_of(evaluated.folder)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_and_started_again_it_is_the_same_to_the_bit(
    seed: int,
    launcher: Launcher,
    unbroken: Run,
    suite_path: Path,
    evaluated: Run,
    tmp_path: Path,
) -> None:
    rng, out = random.Random(seed), tmp_path / "out"
    command = [*oneflow("evaluate"), unbroken.folder, "--suite", suite_path, "--output", out]
    for num_ranks in (rng.choice((1, 2, 4)), rng.choice((1, 2, 4))):
        before = len([*out.rglob("*.jsonl")])
        job = launcher.start(*command, num_ranks=num_ranks)
        wait_until(lambda: len([*out.rglob("*.jsonl")]) > before, "another group")  # noqa: B023
        time.sleep(rng.random() * 0.3)
        job.kill()
        job.wait()
    ends = launcher.run_ranks(rng.choice((1, 2)), *command)
    assert {end.code for end in ends} == {0}, ends[0].stderr
    assert files_of(out) == files_of(evaluated.folder)


def test_a_training_is_followed_from_checkpoint_to_checkpoint(
    launcher: Launcher,
    unbroken: Run,
    suite_path: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(unbroken.folder, tmp_path / "run")
    end = launcher.run(*oneflow("evaluate"), tmp_path / "run", "--suite", suite_path, "--follow", "0.1")
    assert end.code == 0, end.stderr
    (line,) = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 20
    assert "small/paint/agreement" in json.loads(line)
    assert (tmp_path / "run/evaluation/small/step-00000020/report.json").is_file()


def test_what_is_missing_is_told_before_anything_is_loaded(
    launcher: Launcher,
    suite_path: Path,
    suite_text: str,
    tmp_path: Path,
) -> None:
    end = launcher.run(*oneflow("evaluate"), "--suite", suite_path, "--check")
    assert end.code == 0, end.stderr
    broken = tmp_path / "broken.toml"
    broken.write_text(suite_text.replace("items.jsonl", "no.jsonl"))
    end = launcher.run(*oneflow("evaluate"), "--suite", broken, "--check")
    assert end.code == 2
    assert "task.count.path" in end.stdout
    assert "no.jsonl" in end.stdout
    assert names(only_error(end), broken, 1)


def test_another_suite_or_checkpoint_is_not_mixed_with_answers(
    launcher: Launcher,
    unbroken: Run,
    suite_path: Path,
    suite_text: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}\n")
    end = launcher.run(*oneflow("evaluate"), unbroken.folder, "--suite", suite_path, "--output", out)
    assert end.code == 2
    assert names(only_error(end), out / "run.json")


def test_a_run_and_a_suite_have_to_be_named(launcher: Launcher, suite_path: Path, tmp_path: Path) -> None:
    assert launcher.run(*oneflow("evaluate"), "--suite", suite_path).code == 2
    end = launcher.run(*oneflow("evaluate"), tmp_path, "--suite", tmp_path / "no.toml")
    assert end.code == 2
    assert names(only_error(end), tmp_path / "no.toml")
    assert names(only_error(launcher.run(*oneflow("evaluate"), tmp_path, "--suite", suite_path)), tmp_path)
