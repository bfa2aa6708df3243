"""The shipped kernels compiled for GPUs that are not here; in processes of their own, as this one interprets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILES = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def run(root: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**COMPILES, "PYTHONPATH": str(root / "kernels")}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])
def test_no_shipped_kernel_spills_or_wants_more_shared_memory_than_there_is(root: Path, target: str) -> None:
    end = run(root, "-m", "oneflow_kernels.resources", "--target", target)
    assert end.returncode == 0, end.stderr
    committed = (root / "docs/kernel_resources.md").read_text()
    rows = [line for line in end.stdout.splitlines() if line.startswith("|")]
    for row in rows:  # a newer compiler may need other registers: what is shipped must be in the table
        assert row.split("|")[1:3] in [line.split("|")[1:3] for line in committed.splitlines()], row


GREEDY = """
import triton
import triton.language as tl

from oneflow_kernels import resources
from oneflow_kernels.launches import Launch, Variant


@triton.jit
def product(a, b, c, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None]
    place = rows * SIZE + columns
    tl.store(c + place, tl.dot(tl.load(a + place), tl.load(b + place)))


signature = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "SIZE": "constexpr"}
for size in (64, 256):
    variant = Variant("product", product, signature, {"SIZE": size}, Launch({"SIZE": size}, 4, 1), ("cuda:90",))
    usage = resources.measure(variant, "cuda:90")
    print(usage.fits, usage.spilled_bytes > 0, usage.shared_bytes > 232448, usage.matrix_instructions > 0)
"""


def test_spills_and_too_much_shared_memory_are_seen(root: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(GREEDY)
    end = run(root, program)
    assert end.stdout.splitlines() == ["True False False True", "False True True True"], end.stderr


def test_interpreted_kernels_are_not_compiled(root: Path) -> None:
    command = [sys.executable, "-m", "oneflow_kernels.resources"]
    env = {**COMPILES, "PYTHONPATH": str(root / "kernels"), "TRITON_INTERPRET": "1"}
    end = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert end.returncode == 2
    assert "error: TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it" in end.stderr
