"""Whole parts on a CPU: the same jobs on small shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import Config, write_config
from tools.benchmark.jobs import Job, jobs_of
from tools.benchmark.lines import Notebook
from tools.benchmark.report import Line, of_kind
from tools.benchmark.run import draw, measure_all, plan

SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "model.vocab_size=384")
JOBS = {job.name: job for part in ("first", "second") for job in jobs_of(part, 512, 128)}


@pytest.fixture
def tiny(make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all programs of tests have it
    (tmp_path / "config.toml").write_text(write_config(make_config(*SMALL)))
    return tmp_path / "config.toml"


@pytest.fixture
def measure(tiny: Path) -> Callable[..., Notebook]:
    """Measure jobs on a small config."""

    def run(jobs: list[Job], *overrides: str, seconds: float = 240.0) -> Notebook:
        notebook = Notebook(tiny.parent / "results")
        shared = {"config": str(tiny), "overrides": overrides, "folder": str(notebook.folder)}
        measure_all(jobs, shared, notebook, seconds, "0123abc")
        return notebook

    return run


def reasons(lines: list[Line]) -> dict[str, str]:
    return {end["job"]: end["reason"] for end in of_kind(lines, "end") if end["status"] != "measured"}


def test_whole_jobs_are_measured_and_one_that_cannot_be_made_ends_no_other(
    measure: Callable[..., Notebook], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    float8, ours = replace(JOBS["ours float8 compiled none"], after=()), JOBS["ours bf16 eager none"]
    too_narrow = "model.mlp_width=40"
    notebook = measure([float8, ours, JOBS["numbers of draws"]], too_narrow)
    lines = notebook.lines
    assert list(reasons(lines)) == [float8.name]
    assert reasons(lines)[float8.name].startswith("ValueError: blocks.0.mlp.down: a weight of 32 x 40 cannot")
    assert [step["name"] for step in of_kind(lines, "step")] == [ours.name]
    assert [check["is_right"] for check in of_kind(lines, "check")] == [True, True]
    assert lines[0]["commit"] == "0123abc"
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == len(lines)

    plan(notebook, str(tiny), [too_narrow])
    plan(notebook, str(tiny), [too_narrow])  # what is planned is not planned again
    (planned,) = of_kind(notebook.lines, "plan")
    assert planned["peak_gib"] == pytest.approx(sum(planned["by_kind"].values()))
    draw(notebook)
    assert {path.name for path in notebook.folder.iterdir()} == {"results.jsonl", "report.md", "log.txt", "steps.png"}


def test_without_time_all_is_skipped_and_still_written(measure: Callable[..., Notebook]) -> None:
    found = reasons(measure(list(JOBS.values()), seconds=0.0).lines)
    assert found["device"] == "no time left"
    assert found.keys() == JOBS.keys()


def test_nothing_is_planned_while_the_device_is_there(root: Path) -> None:
    for path in (root / "tools" / "benchmark").glob("*.py"):
        assert path.name == "run.py" or "trace_step" not in path.read_text(), path
