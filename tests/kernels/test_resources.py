"""The shipped kernels compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oneflow_kernels.launches import ALL
from oneflow_kernels.resources import SHARED_BYTES, main
from oneflow_kernels.variants import all_variants


def committed(root: Path) -> dict[str, set[tuple[str, str]]]:
    """Name and launch of every row of docs/kernel_resources.md that fits its target, by target."""
    rows: dict[str, set[tuple[str, str]]] = {}
    for line in (root / "docs/kernel_resources.md").read_text().splitlines():
        if line.startswith("## "):
            target = line.removeprefix("## ").split(",")[0]
            rows[target] = set()
        elif line.startswith("| ") and not line.startswith("| kernel"):
            name, launch, _, spilled, shared, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            if spilled == "0" and int(shared.replace(",", "")) <= SHARED_BYTES[target]:
                rows[target].add((name, launch))
    return rows


def test_the_table_has_every_shipped_kernel_and_none_spills_or_wants_more_shared_memory_than_there_is(
    root: Path,
) -> None:
    shipped = {target: {(v.name, str(v.launch)) for v in all_variants() if target in v.targets} for target in ALL}
    assert committed(root) == shipped


PROGRAM = """
import triton
import triton.language as tl

from oneflow_kernels import resources
from oneflow_kernels.launches import Launch
from oneflow_kernels.variants import Variant, all_variants


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
forms = [variant for variant in all_variants() if ", bf16" in variant.name and "cuda:90" in variant.targets]
for variant in {variant.kernel.__name__: variant for variant in reversed(forms)}.values():
    usage = resources.measure(variant, "cuda:90")
    print(usage.name, usage.fits, sep=": ")
"""


def test_every_kernel_compiles_and_fits_and_spills_and_too_much_shared_memory_are_seen(
    root: Path, tmp_path: Path
) -> None:
    """One form of each kernel, for one GPU; docs/kernel_resources.md has them all. And a greedy kernel of our own.

    In a process of its own, as this one interprets kernels.
    """
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    compiles = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env = {**compiles, "PYTHONPATH": str(root / "kernels")}
    end = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, check=False)
    small, large, *kernels = end.stdout.splitlines() or [end.stderr, ""]
    assert (small, large) == ("True False False True", "False True True True"), end.stderr
    assert len(kernels) == len({variant.kernel for variant in all_variants()}), end.stderr
    assert [line for line in kernels if not line.endswith(": True")] == []


def test_interpreted_kernels_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resources"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
