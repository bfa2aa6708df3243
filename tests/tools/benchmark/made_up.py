"""Made-up lines of every kind, as a run on a GPU would tell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.benchmark.report import Line

MACHINE = {
    "kind": "machine",
    "device": "NVIDIA H100",
    "vendor_bf16_tflops": 1000.0,
    "driver": "580.1",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "commit": "0123abc",
    "date": "2026-01-01T00:00:00+00:00",
}


def step(name: str, rate: float = 1e4, tflops: float = 400.0, **fields: Any) -> Line:
    numbers = {"rows_per_second": rate, "tflops": tflops, "documents_per_second": rate / 100, "peak_gib": 50.0}
    return {"kind": "step", "job": name, "name": name, "packs": 1, "sequences": 0, "step_ms": 240.0, **numbers} | fields


def product(tflops: float, dtype: str = "bfloat16") -> Line:
    return {"kind": "rate", "job": "device", "name": f"large product, {dtype}", "ms": 1.4, "tflops": tflops}


def contender(case: str, name: str, ms: float, is_ours: bool = False, **fields: Any) -> Line:
    errors = {"errors": {"loss": 1e-4}, "peak_gib": 2.5, "least_ms": ms - 1.0, "most_ms": ms + 1.0}
    line = {"kind": "contender", "case": case, "name": name, "is_ours": is_ours, "ms": ms, "tflops": 500.0}
    return line | errors | fields


def end(job: str, status: str, reason: str) -> Line:
    return {"kind": "end", "job": job, "status": status, "reason": reason, "seconds": 1.0}


def check(name: str, error: float, is_right: bool) -> Line:
    numbers = {"error": error, "error_of_definition": 2e-3, "is_right": is_right}
    return {"kind": "check", "job": "numbers of all", "name": name, "dtype": "bfloat16", **numbers}


FAILED = {"kind": "contender", "case": "case 0", "name": "Liger | fused", "is_ours": False}
KERNEL = {"name": "gemm", "calls": 8, "ms": 2.0, "share": 0.5}
LINES: Sequence[Line] = [
    MACHINE,
    product(800.0),
    product(90.0, "float32"),
    {"kind": "rate", "job": "device", "name": "copy", "ms": 0.7, "gb_per_second": 3000.0},
    {"kind": "rate", "job": "device", "name": "1B down", "failed": "RuntimeError: no"},
    step("ours bf16 compiled none"),
    step("ours bf16 compiled none", 1.2e4, 480.0, packs=4),
    step("ours float8 compiled none"),
    step("torchtitan 32 x 512 none", 8e3, 300.0, sequences=32),
    {"kind": "plan", "name": "plan bf16 none", "peak_gib": 48.0, "by_kind": {}},
    {
        "kind": "kernels",
        "job": "ours",
        "name": "a step",
        "ms": 5.0,
        "busy_ms": 4.0,
        "kernels": [KERNEL],
    },
    *(
        contender(f"case {n}", *own)
        for n in range(4)
        for own in (("ours", 31.0, True), ("ours", 30.0, True), ("eager", 90.0))
    ),
    FAILED | {"failed": "No module named liger"},
    check("attention", 1e-3, True),
    check("bag loss", 1.0, False),
    {
        "kind": "launches",
        "job": "l",
        "kernel": "bag softmax",
        "milliseconds": {"1024, 4 warps": 0.2, "2048, 4 warps": 0.3},
    },
    end("ours bf16 compiled none", "measured", ""),
    end("ours bf16 eager none", "failed", "OutOfMemoryError: no room"),
    end("sampling", "skipped", "no time left"),
]
