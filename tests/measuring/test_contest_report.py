from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.measuring.contest_report import contest_tables, draw_contests


def entry(name: str, milliseconds: float, is_ours: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "is_ours": is_ours,
        "errors": {"loss": 1e-4},
        "peak_gib": 2.5,
        "ms": milliseconds,
        "ms_range": [milliseconds - 1.0, milliseconds + 1.0],
        "tflops": 500.0,
        "gib_per_second": None,
    }


FAILED = {"name": "Liger | fused", "is_ours": False, "failed": "liger_kernel is not installed"}
MACHINE = {"device": "GPU", "driver": "1", "torch": "2", "triton": "3", "commit": "0123abc", "date": "2026-01-01"}
CHECKS = [
    {"name": "attention", "dtype": "bfloat16", "error": 1e-3, "error_of_definition": 2e-3, "is_right": True},
    {"name": "rotary", "dtype": "float32", "error": 1.0, "error_of_definition": 1e-7, "is_right": False},
]
CASES = [
    {"name": f"case {number}", "contenders": [entry("ours", 30.0, True), entry("eager", 90.0), FAILED]}
    for number in range(4)
]


def result(kernels: dict[str, Any] | None) -> dict[str, Any]:
    return {"machine": MACHINE, "kernels": kernels, "cases": CASES}


def test_a_table_has_every_contender() -> None:
    tables = contest_tables(result({"matmul_tflops": 800.0, "checks": CHECKS}))
    lines = tables.splitlines()
    assert lines[0].startswith("GPU, driver 1, torch 2, triton 3; commit 0123abc, 2026-01-01. ")
    assert "A large product runs at 800.0 TFLOP/s here." in lines
    assert "| attention | bfloat16 | 1.0e-03 | 2.0e-03 | right |" in lines
    assert "| rotary | float32 | 1.0e+00 | 1.0e-07 | **wrong** |" in lines
    assert "| **ours** | 30.000 | 29.000 to 31.000 | 500.0 | 62.5% |  | 2.50 | 1.0e-04 |" in lines
    (failed, *_) = [line for line in lines if line.startswith("| Liger")]
    assert failed.startswith("| Liger / fused | liger_kernel is not installed |")
    assert failed.count("|") == lines[lines.index("### case 0") + 2].count("|")


def test_without_the_rate_of_a_product_there_is_no_share_of_it() -> None:
    assert "| **ours** | 30.000 | 29.000 to 31.000 | 500.0 |  |  | 2.50 | 1.0e-04 |" in contest_tables(result(None))


def test_a_picture_has_a_panel_for_each_case(tmp_path: Path) -> None:
    draw_contests(result(None), tmp_path / "contests.png")
    with Image.open(tmp_path / "contests.png") as image:
        assert image.size == (1680, 520)
