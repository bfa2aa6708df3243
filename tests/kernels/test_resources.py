"""The shipped kernels compiled for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from oneflow_kernels import interval_attention_kernels as attention
from oneflow_kernels.launches import ALL, NEW
from oneflow_kernels.resources import SHARED_BYTES, Usage, main
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


GREEDY = """
import triton
import triton.language as tl

from oneflow_kernels import resources
from oneflow_kernels.launches import Launch
from oneflow_kernels.variants import Variant


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
FORMS = """
import sys

import triton

from oneflow_kernels import resources
from oneflow_kernels.variants import all_variants

print(triton.__version__)
for name in sys.argv[1:]:
    usage = resources.measure(next(variant for variant in all_variants() if variant.name == name), "cuda:90")
    print(name, usage.fits, usage.narrow_copies, sep="; ")
"""


def compiled(program: str, root: Path, folder: Path, packages: Path | None = None, *arguments: str) -> list[str]:
    """What a program prints that compiles kernels, in a process of its own, as this one interprets them.

    Args:
        packages: a folder whose packages come before the installed ones.
    """
    (path := folder / "program.py").write_text(program)
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(str(place) for place in (packages, root / "kernels") if place is not None)
    end = subprocess.run([sys.executable, path, *arguments], env=env, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    return end.stdout.splitlines()


def test_spills_and_too_much_shared_memory_are_seen(root: Path, tmp_path: Path) -> None:
    assert compiled(GREEDY, root, tmp_path) == ["True False False True", "False True True True"]


def check_forms(lines: list[str], version: str, names: list[str]) -> None:
    """In their first launch all fit and nothing spills; the log-sum-exps and deltas of a block are a copy each."""
    assert lines[0] == version
    found = [line.split("; ") for line in lines[1:]]
    assert [(name, fits) for name, fits, _ in found] == [(name, "True") for name in names]
    assert all(int(copies) <= 12 for _, _, copies in found), lines  # of both, in two loops of three stages


FORMS_OF_NEW = [variant for variant in all_variants() if "bf16" in variant.name and NEW[0] in variant.targets]


def test_every_kernel_compiles_and_fits(root: Path, tmp_path: Path) -> None:
    """One form of each kernel, for one GPU; docs/kernel_resources.md has them all."""
    names = list({variant.kernel: variant.name for variant in reversed(FORMS_OF_NEW)}.values())
    assert len(names) == len({variant.kernel for variant in all_variants()})
    check_forms(compiled(FORMS, root, tmp_path, None, *names), triton.__version__, names)


def test_attention_and_the_bag_loss_compile_and_fit_with_the_oldest_triton(root: Path, tmp_path: Path) -> None:
    """That of GPU images: it keeps other layouts, takes more registers, and made 192 copies of the sums of rows."""
    oldest = Path(sys.prefix) / "triton-3.6"
    assert oldest.is_dir(), f"{oldest} is missing; make .venv/installed"
    names = list(dict.fromkeys(variant.name for variant in FORMS_OF_NEW))
    names = [name for name in names if re.fullmatch(r"attention .*, width (64|128)|bag softmax, bf16", name)]
    assert len(names) == 9
    check_forms(compiled(FORMS, root, tmp_path, oldest, *names), "3.6.0", names)


@pytest.mark.parametrize("target", NEW)
@pytest.mark.parametrize("table", [attention.FORWARD, attention.KEY_GRADIENT, attention.QUERY_GRADIENT])
def test_narrow_heads_begin_with_four_warps_of_which_a_multiprocessor_runs_several_programs(
    root: Path, target: str, table: attention.Table
) -> None:
    launches = attention.launches_of(table, 2, 64)
    kernel = launches.kernel.removesuffix(", 2 bytes, narrow heads")
    first = launches.on_target(target)[0]
    assert first.num_warps == 4
    for dtype in ("bf16", "fp16"):
        assert programs(root, target)[f"{kernel}, {dtype}, width 64", str(first)] >= 2


def programs(root: Path, target: str) -> dict[tuple[str, str], int]:
    """How many a multiprocessor runs at once, by name and launch, of docs/kernel_resources.md."""
    (part,) = (part for part in (root / "docs/kernel_resources.md").read_text().split("## ") if part.startswith(target))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:2] == "| "]
    return {(name, launch): int(several) for name, launch, _, _, _, several, *_ in rows[1:]}


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "num_warps", "expected"),
    [
        ("cuda:90", 128, 57344, 4, 4),  # both allow as many
        ("cuda:90", 129, 0, 4, 3),  # 136 are dealt out
        ("cuda:90", 206, 114688, 8, 1),  # 2 by shared memory
        ("cuda:90", 16, 232448, 1, 1),
        ("cuda:90", 16, 0, 1, 32),
        ("cuda:80", 128, 57344, 4, 2),
        ("hip:gfx942", 298, 8192, 4, 1),
        ("hip:gfx942", 32, 0, 4, 8),
    ],
)
def test_a_multiprocessor_runs_as_many_programs_as_its_registers_and_shared_memory_allow(
    target: str, registers: int, shared_bytes: int, num_warps: int, expected: int
) -> None:
    """On NVIDIA's 65,536 registers, and a KiB of shared memory more for each program."""
    zeros = dict.fromkeys(("spilled_bytes", "matrix_instructions", "tma_instructions", "narrow_copies"), 0)
    needs: dict[str, Any] = {"registers": registers, "shared_bytes": shared_bytes, "num_warps": num_warps}
    assert Usage(target=target, name="", launch="", **needs, **zeros).programs == expected


def test_interpreted_kernels_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resources"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
