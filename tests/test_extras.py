"""What is said where a package is missing that only some programs need."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

from oneflow_dist.extras import install, require
from tests.messages import naming

EXTRAS = ("evaluate", "experiments", "latents", "remote", "serve", "sounds", "track")


def required(root: Path) -> set[str]:
    """The extras that calls of `require` name, all over the source."""
    found = set()
    for folder in ("oneflow_dist", "tools", "launch"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                    assert isinstance(node.args[1], ast.Constant)
                    found.add(str(node.args[1].value))
    return found


def test_what_is_there_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    require("metrics.wandb", "track", "wandb")
    assert "wandb" not in sys.modules


def test_what_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(
        ValueError, match=naming("oneflow serve", "uvicorn", "pip install 'oneflow_dist[serve]'")
    ) as error:
        require("oneflow serve", "serve", "starlette", "uvicorn")
    assert "starlette" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=naming("no_such_package", install("track"))):
        require("metrics.wandb", "track", "no_such_package")


def test_every_extra_that_is_named_is_one_of_the_project(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert required(root) <= set(extras)
    assert set(EXTRAS) <= required(root)
