"""The picture of a made-up result."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from oneflow_dist.measuring.figure import FLOAT8, OURS, PEER, draw_memory, draw_rates, draw_result, draw_shares, title
from oneflow_dist.measuring.jobs import all_jobs
from oneflow_dist.measuring.summary import summarize

MACHINE = {
    "device": "NVIDIA H100",
    "vendor_bf16_tflops": 989.0,
    "driver": "580.1",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "commit": "0123abc",
    "date": "2026-01-01T00:00:00+00:00",
}


def made_up(vendor: float | None = 989.0) -> dict[str, Any]:
    entries = []
    for number, job in enumerate(all_jobs(16384, 512)):
        numbers = {"rows_per_second": 5e4 + number, "documents_per_second": 100.0, "tflops": 400.0, "peak_gib": 60.0}
        numbers |= {"matmul_tflops": 800.0}
        outcome: dict[str, Any] = {"status": "measured", "measured": numbers}
        if "eager" in job.name:
            outcome = {"status": "skipped", "reason": "no time left"}
        entries.append({**asdict(job), **outcome, "seconds": 1.0})
    return summarize(MACHINE | {"vendor_bf16_tflops": vendor}, {}, entries)


def colours_of(path: Path) -> set[str]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0)}


def test_ours_float8_and_the_peer_are_told_apart(tmp_path: Path) -> None:
    draw_result(made_up(), tmp_path / "result.png")
    assert {OURS, FLOAT8, PEER} <= colours_of(tmp_path / "result.png")


def test_a_result_without_peak_rates_or_runs_can_be_drawn(tmp_path: Path) -> None:
    draw_result(made_up(vendor=None), tmp_path / "result.png")
    draw_result(summarize(MACHINE, {}, []), tmp_path / "nothing.png")
    assert OURS in colours_of(tmp_path / "result.png")
    assert OURS not in colours_of(tmp_path / "nothing.png")


def test_the_title_has_the_machine_and_the_comparison() -> None:
    first, *rest = title(made_up()).splitlines()
    assert first == "NVIDIA H100, torch 2.11.0, triton 3.6.0, driver 580.1; commit 0123abc, 2026-01-01T00:00:00+00:00"
    assert len(rest) == 2
    assert "x the rows per second" in rest[0]


def test_bars_are_as_long_as_the_numbers() -> None:
    runs = made_up()["runs"]
    name = "ours bf16 compiled none"
    entries = [run for run in runs if run["name"] == name]
    rates, shares, memory = Figure().subplots(1, 3)
    draw_rates(rates, {name: entries})
    draw_shares(shares, {name: entries})
    draw_memory(memory, {name: entries})
    mean = sum(run["measured"]["rows_per_second"] for run in entries) / 2e3
    assert [patch.get_width() for patch in rates.patches] == [pytest.approx(mean)]
    assert [patch.get_width() for patch in shares.patches] == [pytest.approx(100 * 400.0 / 989.0)]
    assert [patch.get_width() for patch in memory.patches] == [60.0, 60.0]  # planned, measured
