from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest

from oneflow_dist.command import COMMANDS
from oneflow_dist.config import RANGES, OptimGroup, load_config
from tools.documentation.reference import (
    config_page,
    describe_type,
    help_of,
    key_anchors,
    module_pages,
    programs_page,
)


@pytest.fixture(scope="module")
def page() -> str:
    return config_page()


def rows_of(page: str) -> dict[str, list[str]]:
    """The other columns by the anchor of a key."""
    return {key: rest.split(" | ") for key, rest in re.findall(r"^\| .*\{ #(\S+) \} \| (.*) \|$", page, re.MULTILINE)}


def test_every_key_of_every_config_has_a_row(page: str, root: Path) -> None:
    rows, anchors = rows_of(page), key_anchors()
    for path in sorted((root / "configs").glob("*.toml")):
        config = load_config(path)
        for section in dataclasses.fields(config):
            tables = getattr(config, section.name)
            for table in tables.values() if isinstance(tables, dict) else [tables]:
                for field in dataclasses.fields(table):
                    assert anchors[f"{section.name}.{field.name}"] in rows
    assert set(rows) == set(anchors.values())


def test_a_row_has_type_range_default_and_comment(page: str) -> None:
    rows = rows_of(page)
    assert rows["train.steps"][:2] == [f"whole number in {RANGES['train']['steps']}".replace("[", "&#91;"), ""]
    assert rows["objective.kind"][1] == '`"insertion"`'
    assert rows["modality.NAME.times"][0] == '`"uniform"` or `"logit_normal"`'
    assert rows["optim.group.frozen"][:2] == ["true or false", "`false`"]
    assert "collect Python's garbage" in rows["train.gc_every_steps"][2].replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Annotated[float, "(0, 1]"], "number in (0, 1]"),
        (Literal["a", 2], '`"a"` or `2`'),
        (tuple[int, ...], "list of: whole number"),
        (dict[str, float], "table of: number"),
        (tuple[OptimGroup, ...], "tables"),
        (bool, "true or false"),
    ],
)
def test_types_are_said_in_words(hint: object, said: str) -> None:
    assert describe_type(hint) == said


def test_every_program_says_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    page = programs_page()
    for name in COMMANDS:
        assert f"usage: oneflow {name} " in page
    assert "usage: oneflow benchmark flops " in page
    assert max(map(len, page.splitlines())) < 200
    assert help_of("train") in page


def test_every_module_of_a_package_has_a_page_and_a_line(root: Path) -> None:
    pages = module_pages({"oneflow_kernels": root / "kernels", "oneflow_dist": root})
    index = pages.pop("README.md")
    assert "::: oneflow_dist.data.packing" in pages["oneflow_dist/data/packing.md"]
    assert "oneflow_kernels/reference.md" in pages
    assert not any(uri.endswith("__init__.md") or "/remote/" in uri for uri in pages)
    assert all(f"]({uri}) | " in index for uri in pages)
