"""The scripts that start runs; tests/torture/slurm.py has them on a real SLURM."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.launching import ENVIRONMENT, ROOT, Run, read_metrics, wait_for_step, without_timings
from tests.processes import environment, find_ranks

CPU = {"ONEFLOW_PROCESSES": "1"}


def say(*words: str | Path, **env: str) -> str:
    """What a script prints."""
    end = subprocess.run(
        words, cwd=ROOT, env={**ENVIRONMENT, **CPU, **env}, capture_output=True, text=True, check=False, timeout=240
    )
    return end.stdout + end.stderr


def test_a_dry_run_shows_what_would_run_and_does_nothing(tmp_path: Path) -> None:
    words = ("configs/oneflow_8b.toml", f"run.folder={tmp_path / 'run'}")
    on_one = say("launch/torchrun.sh", "--dry-run", *words, ONEFLOW_PROCESSES="8").splitlines()
    assert len(on_one) == 2  # the health check, then training
    assert all("--nproc-per-node 8" in line and line.endswith(" ".join(words)) for line in on_one)
    flags = ("--nodes", "8", "--account", "me")
    submitted, *on_nodes = say("launch/slurm.sbatch", *flags, "--dry-run", *words).splitlines()
    assert submitted.startswith("sbatch ")
    assert " ".join((*flags, "launch/slurm.sbatch", *words)) in submitted
    assert any("srun" in line for line in on_nodes)
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_were_unfit_are_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "excluded").write_text("node7  # 2026-01-01 ECC\nnode9\n")
    said = say("launch/slurm.sbatch", "--dry-run", "configs/debug.toml", ONEFLOW_EXCLUDE=str(tmp_path / "excluded"))
    assert "--exclude node7,node9 " in said


def test_a_submission_without_a_config_is_refused() -> None:
    assert "no CONFIG" in say("launch/slurm.sbatch", "--nodes", "8")


def test_a_run_whose_rank_is_killed_and_that_is_told_to_stop_is_so_far_the_unbroken_one(
    train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["launch/torchrun.sh", *train_command(folder, "checkpoint.every_steps=3", "checkpoint.keep=9")[2:]]
    env = {**ENVIRONMENT, **CPU, "ONEFLOW_HEALTH": "off", "ONEFLOW_LAUNCH": "mine"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        wait_for_step(folder, 4)
        (rank,) = (pid for pid in find_ranks() if environment(pid).get("ONEFLOW_ATTEMPT", "").startswith(f"{folder}/"))
        os.kill(rank, signal.SIGKILL)
        wait_for_step(folder, 8)  # of the second attempt, which has begun after step 3
        process.send_signal(signal.SIGINT)  # Ctrl-C
        assert process.wait(120) == 75, (tmp_path / "log").read_text()
    states = [path.name for path in sorted((folder / "launches/mine").iterdir())]
    assert states == ["attempt-0", "attempt-1", "rank-00000.log"]
    metrics = without_timings(read_metrics(folder))
    assert metrics == without_timings(read_metrics(unbroken.folder))[: len(metrics)]
