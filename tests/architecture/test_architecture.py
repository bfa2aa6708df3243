"""Rules of the source tree that a test keeps, so that nobody has to remember them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
# Of all that `oneflow_dist.train` imports, kernels included. A person can hold 7,000: make it smaller, and never larger
# without saying in the commit by how much, and why that is the least.
MAX_TRAINING_LINES = 17_100

# Highest first. A module may import what lies lower; modules of one package may import each other, siblings may not.
LAYERS = [
    {"launch", "tools"},
    {"tools.benchmark"},
    {"oneflow_dist.commands"},
    {"oneflow_dist.evaluation", "oneflow_dist.exporting", "oneflow_dist.serving"},
    {"oneflow_dist.photos", "oneflow_dist.readiness", "oneflow_dist.reporting"},
    {"oneflow_dist.prepare"},
    {"oneflow_dist.planning", "oneflow_dist.precompute"},
    {"oneflow_dist.train"},
    {"oneflow_dist.training"},
    {"oneflow_dist.inspection"},
    {"oneflow_dist.pictures"},
    {"oneflow_dist.sampler"},
    {"oneflow_dist.writers"},
    {"oneflow_dist.trained"},
    {"oneflow_dist.copies"},
    {"oneflow_dist.canvas", "oneflow_dist.first_weights", "oneflow_dist.metrics"},
    {"oneflow_dist.checkpoint"},
    {"oneflow_dist.clock", "oneflow_dist.guidance", "oneflow_dist.making"},
    {"oneflow_dist.forward"},
    {"oneflow_dist.muon", "oneflow_dist.validation"},
    {"oneflow_dist.optim", "oneflow_dist.progress", "oneflow_dist.stored_tensors"},
    {"oneflow_dist.guard"},
    {"oneflow_dist.parallel"},
    {"oneflow_dist.data", "oneflow_dist.model"},
    {"oneflow_dist.process"},
    {"oneflow_dist.baselines"},
    {"oneflow_dist.flow", "oneflow_dist.transfers"},
    {"oneflow_dist.command"},
    {"oneflow_dist.containers", "oneflow_dist.config", "oneflow_dist.runtime"},
    {"oneflow_dist.views"},
    {"oneflow_dist.objective"},
    {"oneflow_dist.sampling"},
    {"oneflow_dist.modality"},
    {"oneflow_dist.toml", "oneflow_dist.signals"},
    {"oneflow_dist.bars", "oneflow_dist.extras", "oneflow_dist.verdict", "oneflow_dist.version"},
    {"oneflow_dist.files"},
    {"oneflow_kernels"},
]
LEVEL = {package: -level for level, layer in enumerate(LAYERS) for package in layer}

FOLDERS = {"launch": ROOT, "oneflow_dist": ROOT, "oneflow_kernels": ROOT / "kernels", "tools": ROOT}
SOURCE = sorted(path for name, folder in FOLDERS.items() for path in (folder / name).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported."""
    base = next(folder for name, folder in FOLDERS.items() if (folder / name) in path.parents)
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str | None:
    """The entry of LAYERS that a module belongs to; None for what is not ours."""
    parts = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in LEVEL), None)


def imports_of(path: Path) -> list[str]:
    """Modules that a file imports anywhere in it, and what it imports of them, by absolute name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if path.parent.name == "remote" and node.level == 1:  # files that are carried away together
                continue
            assert node.level == 0, f"{path}: relative import in line {node.lineno}; write the whole name"
            base = str(node.module)
            found += [] if base in FOLDERS else [base]
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def modules_behind(module: str) -> set[str]:
    """Our modules that a module imports, itself, directly or through others, wherever the import stands."""
    paths = {module_name(path): path for path in SOURCE}
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= {name for name in imports_of(paths[module]) if name in paths} - seen
    return seen


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_source_is_found() -> None:
    assert {"oneflow_dist.train", "oneflow_kernels.reference", "tools.digits.make"} <= {module_name(p) for p in SOURCE}


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_every_module_has_a_layer(path: Path) -> None:
    module = module_name(path)
    assert module == "oneflow_dist" or package_of(module) is not None, f"{module}: give it a place in LAYERS"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    here = package_of(module_name(path))
    for module in imports_of(path):
        there = package_of(module)
        if there is None or here is None:
            assert not module.startswith("oneflow"), f"{name_of(path)} imports {module}, which has no layer"
        else:
            assert there == here or LEVEL[there] < LEVEL[here], f"{name_of(path)} may not import {module}"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_a_file_fits_on_a_few_screens(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines; cut it where its module docstring needs an 'and'"


def test_what_training_imports_does_not_grow_unnoticed() -> None:
    behind = modules_behind("oneflow_dist.train")
    assert {"oneflow_dist.training", "oneflow_dist.data.packing", "oneflow_kernels.bag_operations_kernels"} <= behind
    assert sum(len(p.read_text().splitlines()) for p in SOURCE if module_name(p) in behind) <= MAX_TRAINING_LINES


@pytest.mark.parametrize("path", [p for p in SOURCE if p.name != "__init__.py"], ids=name_of)
def test_a_module_has_a_test_file(path: Path) -> None:
    """The Triton kernels x_kernels.py that of x."""
    folder = path.relative_to(ROOT).parent
    mirrored = Path(*[part for part in folder.parts if part not in ("oneflow_dist", "oneflow_kernels")])
    expected = ROOT / "tests" / mirrored / f"test_{path.stem.removesuffix('_kernels')}.py"
    assert expected.is_file(), f"{name_of(path)}: write {name_of(expected)}"


@pytest.mark.parametrize("path", [p for p in SOURCE if p.name == "__init__.py"], ids=name_of)
def test_an_init_file_only_says_what_its_package_is(path: Path) -> None:
    (only,) = ast.parse(path.read_text()).body
    assert isinstance(only, ast.Expr)
    assert isinstance(only.value, ast.Constant)
    assert isinstance(only.value.value, str)
