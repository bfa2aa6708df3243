"""tools/measure_gpu.py on a CPU: the same program on small shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import measure_gpu
from oneflow_dist.config import Config, write_config
from oneflow_dist.measuring.jobs import Job, Settings, all_jobs
from tests.launching import Launcher, only_error

SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "model.vocab_size=384")


def ours(precision: str, checkpointing: str) -> Job:
    """A job of the list that compiles nothing."""
    (job,) = (job for job in all_jobs(512, 128) if job.name == f"ours {precision} eager {checkpointing}")
    return job


@pytest.fixture
def measure(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Measure jobs on a small config; returns the content of the result file."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all programs of tests have it
    config = tmp_path / "config.toml"
    config.write_text(write_config(make_config(*SMALL)))

    def run(jobs: list[Job], *overrides: str, seconds: float = 240.0) -> dict[str, Any]:
        settings = Settings(config=str(config), overrides=overrides, steps=1)
        path = measure_gpu.measure_all(jobs, settings, time.monotonic() + seconds, tmp_path / "results", "0123abc")
        return json.loads(path.read_text())

    return run


def test_a_result_has_both_sides_memory_kernels_and_a_picture(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job for job in all_jobs(512, 128) if job.name in ("kernels", "plan bf16 none")]
    peer = Job(name="torchtitan 4 x 128 none", kind="peer", sequences=4, overrides=("train.compile=false",))
    result = measure([*jobs, ours("bf16", "none"), peer])
    assert result["not_measured"] == {}
    first, second = result["runs"]
    assert first["measured"]["rows_per_second"] > 0.0
    assert 0.0 < first["mfu_of_measured_matmul"] < 1.0
    assert first["planned_peak_gib"] == result["plans"]["plan bf16 none"]["peak_gib"] > 0.0
    assert second["measured"]["tflops_by_its_own_formula"] > 0.0
    assert result["comparison"]["4 documents"]["rows_per_second_ratio"] == pytest.approx(
        first["measured"]["rows_per_second"] / second["measured"]["rows_per_second"]
    )
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["commit"] == "0123abc"
    assert capsys.readouterr().out.count("torchtitan 4 x 128 none ") == 2  # as it ended, and in the table
    (picture,) = (tmp_path / "results").glob("*.png")
    with Image.open(picture) as image:
        assert image.width > 1000


def test_one_variant_that_cannot_be_made_ends_no_other(measure: Callable[..., dict[str, Any]]) -> None:
    result = measure([ours("float8", "none"), ours("bf16", "none")], "model.mlp_width=40")
    reasons = result["not_measured"]
    assert list(reasons) == ["ours float8 eager none"]
    assert reasons["ours float8 eager none"].startswith("ValueError: blocks.0.mlp.gate: a weight of 40 x 32 cannot")
    assert [run["status"] for run in result["runs"]] == ["failed", "measured"]


def test_without_time_all_is_skipped_and_still_written(measure: Callable[..., dict[str, Any]]) -> None:
    result = measure(all_jobs(512, 128), seconds=0.0)
    assert set(result["not_measured"].values()) == {"no time left"}
    assert len(result["runs"]) > 15


def test_names_are_listed_without_measuring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    config = str(root / "configs" / "oneflow_1b.toml")
    monkeypatch.setattr("sys.argv", ["measure_gpu", "--list", "--only", "peer 32", "--config", config])
    measure_gpu.main()
    assert capsys.readouterr().out == "\n"
    monkeypatch.setattr("sys.argv", ["measure_gpu", "--list", "--only", "x 8192", "--config", config])
    measure_gpu.main()
    assert capsys.readouterr().out == "torchtitan 2 x 8192 none\ntorchtitan 2 x 8192 selective\n"


def test_a_config_that_is_not_there_is_said_in_one_line(launcher: Launcher) -> None:
    end = launcher.run("tools/measure_gpu.py", "--config", "configs/no-such.toml")
    assert end.code == 2
    assert only_error(end).startswith("error: configs/no-such.toml: no such config file")
