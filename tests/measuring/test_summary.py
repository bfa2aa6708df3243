from __future__ import annotations

from typing import Any

import pytest

from oneflow_dist.measuring.summary import compare, plan_of, rated, summarize, table

MACHINE = {"vendor_bf16_tflops": 1000.0}


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
        measured("ours bf16 compiled none", 12345.0, 600.0),
        failed("ours bf16 eager none"),
        simple("plan bf16 none", "plan", {"peak_gib": 48.0}),
    ]
    result = summarize(MACHINE, {}, entries)
    assert [run["name"] for run in result["runs"]] == ["ours bf16 compiled none", "ours bf16 eager none"]
    assert result["runs"][0]["mfu_of_measured_matmul"] == pytest.approx(0.75)
    assert result["runs"][0]["planned_peak_gib"] == 48.0  # planned after it was measured
    assert result["not_measured"] == {"ours bf16 eager none": "OutOfMemoryError: no room"}
    lines = table(result).splitlines()
    assert lines[1].split()[4:] == ["12,345", "123.5", "600.0", "60.0%", "75.0%", "50.0", "48.0"]
    assert lines[2].endswith("failed: OutOfMemoryError: no room")


def test_a_result_of_nothing_is_a_result() -> None:
    result = summarize(MACHINE, {}, [])
    assert result["kernels"] is None
    assert result["runs"] == []
    assert "bidirectional attention counts every pair" in result["convention"]
