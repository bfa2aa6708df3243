"""A result: its numbers, its table, what it says of the machine, and the picture of a made-up one."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from oneflow_dist.measuring.jobs import all_jobs
from oneflow_dist.measuring.result import (
    FLOAT8,
    OURS,
    PEER,
    compare,
    current_commit,
    describe_gpu,
    describe_machine,
    draw_memory,
    draw_rates,
    draw_result,
    draw_shares,
    plan_of,
    rated,
    summarize,
    table,
    title,
)

MACHINE = {
    "device": "NVIDIA H100",
    "vendor_bf16_tflops": 989.0,
    "driver": "580.1",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "commit": "0123abc",
    "date": "2026-01-01T00:00:00+00:00",
}


def measured(name: str, rate: float, tflops: float, **fields: Any) -> dict[str, Any]:
    numbers = {"rows_per_second": rate, "documents_per_second": rate / 100, "tflops": tflops, "peak_gib": 50.0}
    kind = "peer" if name.startswith("torchtitan") else "ours"
    entry = {"name": name, "kind": kind, "status": "measured", "measured": numbers, "seconds": 1.0, "sequences": 0}
    return {**entry, "overrides": (f"train.precision={name.split()[1]}",), **fields}


def failed(name: str) -> dict[str, Any]:
    return {"name": name, "kind": "ours", "status": "failed", "reason": "OutOfMemoryError: no room", "seconds": 1.0}


def simple(name: str, kind: str, numbers: dict[str, float]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "status": "measured", "measured": numbers, "seconds": 1.0}


def test_shares_are_of_the_vendors_peak_and_of_the_measured_product() -> None:
    entry = rated(measured("ours bf16 eager none", 1e4, 400.0), 1000.0, 800.0, {"plan bf16 none": {"peak_gib": 48.0}})
    assert entry["mfu"] == pytest.approx(0.4)
    assert entry["mfu_of_measured_matmul"] == pytest.approx(0.5)
    assert entry["mfu_by_its_own_formula"] is None
    assert entry["planned_peak_gib"] == 48.0


def test_the_peers_own_formula_gives_a_share_of_its_own() -> None:
    entry = measured("torchtitan 32 x 512 none", 1e4, 400.0)
    entry["measured"]["tflops_by_its_own_formula"] = 420.0
    assert rated(entry, 1000.0, 800.0, {})["mfu_by_its_own_formula"] == pytest.approx(0.42)


def test_what_is_not_known_is_none_and_not_nought() -> None:
    entry = rated(measured("ours bf16 eager none", 1e4, 400.0), None, None, {})
    assert entry["mfu"] is entry["mfu_of_measured_matmul"] is entry["planned_peak_gib"] is None


def test_eager_and_compiled_have_one_plan() -> None:
    assert plan_of("ours float8 compiled full") == plan_of("ours float8 eager full") == "plan float8 full"


def test_the_fastest_of_each_side_are_compared_by_the_mean_of_their_rounds() -> None:
    ours, peer = "ours bf16 compiled none", "torchtitan 32 x 512 none"
    entries = [
        *(measured(ours, rate, 600.0) for rate in (90.0, 110.0)),
        measured("ours bf16 eager none", 105.0, 700.0),
        measured("ours float8 compiled none", 500.0, 900.0),
        *(measured(peer, rate, 400.0, sequences=32) for rate in (45.0, 55.0)),
        measured("torchtitan 2 x 8192 none", 40.0, 500.0, sequences=2),
    ]
    assert compare(entries) == {
        "2 documents": {
            "ours": "ours bf16 eager none",
            "peer": "torchtitan 2 x 8192 none",
            "rows_per_second_ratio": pytest.approx(105.0 / 40.0),
            "tflops_ratio": pytest.approx(700.0 / 500.0),
        },
        "32 documents": {
            "ours": "ours bf16 eager none",
            "peer": peer,
            "rows_per_second_ratio": pytest.approx(105.0 / 50.0),
            "tflops_ratio": pytest.approx(700.0 / 400.0),
        },
    }


def test_with_one_side_missing_nothing_is_compared() -> None:
    assert compare([]) == {}
    assert compare([measured("ours bf16 eager none", 1.0, 1.0)]) == {}
    assert compare([measured("torchtitan 2 x 8192 none", 1.0, 1.0, sequences=2)]) == {}


def test_a_result_keeps_what_failed_with_its_reason() -> None:
    entries = [
        simple("kernels", "kernels", {"matmul_tflops": 800.0}),
        simple("fastest launches", "tune", {"swiglu forward": {"1024, 4 warps, 1 stages": 0.2}}),
        measured("ours bf16 compiled none", 12345.0, 600.0),
        failed("ours bf16 eager none"),
        simple("plan bf16 none", "plan", {"peak_gib": 48.0}),
    ]
    result = summarize(MACHINE | {"vendor_bf16_tflops": 1000.0}, {}, entries)
    assert [run["name"] for run in result["runs"]] == ["ours bf16 compiled none", "ours bf16 eager none"]
    assert result["runs"][0]["mfu_of_measured_matmul"] == pytest.approx(0.75)
    assert result["runs"][0]["planned_peak_gib"] == 48.0  # planned after it was measured
    assert result["launches"] == {"swiglu forward": {"1024, 4 warps, 1 stages": 0.2}}
    assert result["not_measured"] == {"ours bf16 eager none": "OutOfMemoryError: no room"}
    lines = table(result).splitlines()
    assert lines[1].split()[4:] == ["12,345", "123.5", "600.0", "60.0%", "75.0%", "50.0", "48.0"]
    assert lines[2].endswith("failed: OutOfMemoryError: no room")


def test_a_result_of_nothing_is_a_result() -> None:
    result = summarize(MACHINE, {}, [])
    assert result["kernels"] is None
    assert result["runs"] == []
    assert "bidirectional attention counts every pair" in result["convention"]


def test_a_result_says_what_it_was_measured_on_and_with() -> None:
    machine = describe_machine(commit="0123abc")
    assert machine["commit"] == "0123abc"
    assert machine["torch"] == torch.__version__
    assert machine["torchtitan"] == "0.2.2"
    assert all(machine[key] for key in ("device", "driver", "cuda", "triton", "python"))
    assert datetime.datetime.fromisoformat(machine["date"]).tzinfo is not None


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_name_memory_and_driver_are_those_of_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "printf 'NVIDIA H200, 143771 MiB, 580.1\\nNVIDIA H200, 143771 MiB, 580.1\\n'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_gpu() == ("NVIDIA H200", "143771 MiB", "580.1")
    assert describe_machine("0123abc")["vendor_bf16_tflops"] == 989.0


def test_a_driver_that_does_not_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo 'no devices were found'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_gpu()[1:] == ("none", "none")


def test_a_folder_without_git_has_no_known_commit(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_commit(tmp_path) == "unknown"
    assert len(current_commit(root).removesuffix("-dirty")) == 12
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit(root) == "unknown"


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
