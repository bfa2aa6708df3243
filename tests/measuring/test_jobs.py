"""Jobs in processes of their own, which here are small programs in place of measurements."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.measuring import jobs as jobs_module
from oneflow_dist.measuring.jobs import Job, Settings, all_jobs, run_job, run_jobs

SETTINGS = Settings(config="configs/debug.toml", overrides=(), steps=1)

# A program that does what the name of its job says.
STAND_IN = """
import json, os, pathlib, subprocess, sys, time
task = json.loads(sys.argv[-1])
name, result = task["job"]["name"], pathlib.Path(task["result"])
print("this is", name)
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    result.with_name("child").write_text(str(child.pid))
    time.sleep(60)
if name == "fails":
    result.write_text(json.dumps({"error": "OutOfMemoryError: CUDA out of memory."}))
    sys.exit(1)
if name == "dies":
    os.kill(os.getpid(), 9)
result.write_text(json.dumps({"measured": {"value": len(name)}}))
"""


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{STAND_IN}")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(jobs_module.sys, "executable", str(tmp_path / "python"))


def job(name: str, **options: Any) -> Job:
    return Job(name=name, kind="ours", **options)


def run_all(jobs: list[Job], seconds: float, folder: Path) -> dict[str, str]:
    entries: list[dict[str, Any]] = []
    run_jobs(jobs, SETTINGS, seconds, folder / "run.log", entries.append)
    assert [entry["name"] for entry in entries] == [job.name for job in jobs]
    return {entry["name"]: entry.get("reason", str(entry.get("measured"))) for entry in entries}


def test_a_job_that_fails_or_dies_ends_no_other(tmp_path: Path) -> None:
    outcomes = run_all([job("fails"), job("dies"), job("works")], 60.0, tmp_path)
    assert outcomes == {
        "fails": "OutOfMemoryError: CUDA out of memory.",
        "dies": "ended with code -9 and no error; see run.log",
        "works": "{'value': 5}",
    }
    assert [line for line in (tmp_path / "run.log").read_text().splitlines() if line.startswith("=====")] == [
        "===== fails",
        "===== dies",
        "===== works",
    ]
    assert "this is works" in (tmp_path / "run.log").read_text()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_job_that_hangs_is_stopped_with_what_it_has_started(tmp_path: Path) -> None:
    outcome = run_job(job("hangs"), SETTINGS, 3.0, tmp_path / "run.log")
    assert outcome == {"status": "failed", "reason": "stopped after 3 s"}
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5.0
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_result_of_one_job_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    run_job(job("works"), SETTINGS, 30.0, tmp_path / "run.log")
    assert run_job(job("dies"), SETTINGS, 30.0, tmp_path / "run.log")["status"] == "failed"


def test_what_is_expected_to_take_longer_than_is_left_is_skipped(tmp_path: Path) -> None:
    assert run_all([job("hangs"), job("works")], 2.0, tmp_path) == {
        "hangs": "stopped after 2 s",
        "works": "no time left",
    }


def test_what_needs_a_package_that_is_missing_is_skipped_and_says_so(tmp_path: Path) -> None:
    outcomes = run_all([job("peer", needs="no_such_package"), job("works", needs="json")], 60.0, tmp_path)
    assert outcomes == {"peer": "not installed", "works": "{'value': 5}"}


def test_the_most_important_jobs_come_first_and_take_turns() -> None:
    names = [job.name for job in all_jobs(16384, 512)]
    ours, peer = "ours bf16 compiled none", "torchtitan 32 x 512 none"
    assert names[:2] == ["fastest launches", "kernels"]  # numbers are checked as launched
    assert names[4:9] == [ours, peer, ours, peer, "torchtitan 2 x 8192 none"]


def test_every_variant_of_ours_has_a_job_and_a_plan() -> None:
    jobs = all_jobs(16384, 512)
    expected = {
        f"{precision} {mode} {checkpointing}"
        for precision in ("bf16", "float8")
        for mode in ("compiled", "eager")
        for checkpointing in ("none", "selective", "full")
    }
    assert {job.name.removeprefix("ours ") for job in jobs if job.kind == "ours"} == expected
    plans = {job.name for job in jobs if job.kind == "plan"}
    assert plans == {f"plan {p} {c}" for p in ("bf16", "float8") for c in ("none", "selective", "full")}
