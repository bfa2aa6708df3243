"""What people read of made-up results."""

from __future__ import annotations

import pytest

from tests.tools.benchmark.made_up import LINES, MACHINE, product, step
from tools.benchmark.report import compare, large_product, plan_of, rated, report


def test_shares_are_of_the_vendors_peak_and_of_the_measured_product() -> None:
    first, *_ = rated(LINES)
    assert first["mfu"] == pytest.approx(0.4)
    assert first["mfu_of_measured_matmul"] == pytest.approx(0.5)
    assert first["planned_peak_gib"] == 48.0


def test_what_is_not_known_is_none_and_not_nought() -> None:
    (line,) = rated([MACHINE | {"vendor_bf16_tflops": None}, step("ours bf16 eager none")])
    assert line["mfu"] is line["mfu_of_measured_matmul"] is line["planned_peak_gib"] is None


def test_the_large_product_is_that_of_the_faster_dtype() -> None:
    assert large_product([product(90.0, "float32"), product(800.0)]) == 800.0


def test_eager_and_compiled_have_one_plan() -> None:
    assert plan_of("ours float8 compiled full") == plan_of("ours float8 eager full") == "plan float8 full"


def test_the_fastest_of_each_side_are_compared_by_the_mean_of_their_rounds_of_one_pack() -> None:
    ours, peer = "ours bf16 compiled none", "torchtitan 32 x 512 none"
    lines = [
        *(step(ours, rate, 600.0) for rate in (90.0, 110.0)),
        step(ours, 900.0, 800.0, packs=4),
        step("ours bf16 eager none", 105.0, 700.0),
        step("ours float8 compiled none", 500.0, 900.0),
        *(step(peer, rate, 400.0, sequences=32) for rate in (45.0, 55.0)),
        step("torchtitan 2 x 8192 none", 40.0, 500.0, sequences=2),
    ]
    pair, many = compare(lines)
    assert pair == {
        "ours": "ours bf16 eager none",
        "peer": "torchtitan 2 x 8192 none",
        "sequences": 2,
        "rows_per_second_ratio": pytest.approx(105.0 / 40.0),
        "tflops_ratio": pytest.approx(700.0 / 500.0),
    }
    assert (many["peer"], many["rows_per_second_ratio"]) == (peer, pytest.approx(105.0 / 50.0))


def test_with_one_side_missing_nothing_is_compared() -> None:
    assert compare([]) == compare([step("ours bf16 eager none")]) == compare([step("torchtitan 2 x 8192 none")]) == []


def test_a_report_of_nothing_is_a_report() -> None:
    assert report([]) == "# Measured on one GPU\n"


@pytest.mark.parametrize(
    "line",
    [
        "NVIDIA H100, torch 2.11.0, triton 3.6.0, driver 580.1; commit 0123abc, 2026-01-01T00:00",
        "| ours bf16 compiled none | 10,000 | 100.0 | 400.0 | 40.0% | 50.0% | 240.0 | 50.0 | 48.0 |",
        "| ours bf16 compiled none, 4 packs | 12,000 | 120.0 | 480.0 | 48.0% | 60.0% | 240.0 | 50.0 | 48.0 |",
        "ours bf16 compiled none against torchtitan 32 x 512 none: 1.25x the rows per second, 1.33x the FLOP rate",
        "| **ours** | 30.000 | 29.000 | 31.000 | 500.0 | 62.5% | 2.50 | 1.0e-04 |",
        "| Liger / fused | No module named liger |  |  |  |  |  |  |",
        "### Kernels of a step: 4.00 of 5.00 ms",
        "| `gemm` | 8 | 2.000 | 50.0% |",
        "| copy | 0.700 |  | 3000 |",
        "| 1B down | RuntimeError: no |  |  |",
        "| attention, bfloat16 | 1.0e-03 | 2.0e-03 | right |",
        "| bag loss, bfloat16 | 1.0e+00 | 2.0e-03 | **wrong** |",
        "| bag softmax | 1024, 4 warps | 0.200 |",
        "| ours bf16 eager none | failed: OutOfMemoryError: no room |",
        "| sampling | skipped: no time left |",
    ],
)
def test_a_report_has_every_number_and_every_reason(line: str) -> None:
    assert line in report(LINES).splitlines()


def test_of_several_lines_of_a_contender_the_last_counts() -> None:
    assert report(LINES).count("| **ours** |") == 4
    assert "| 31.000 | 30.000 |" not in report(LINES)
