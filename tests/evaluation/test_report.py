from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.evaluation.report import as_table
from tests.launching import Run


@pytest.fixture(scope="module")
def report(evaluated: Run) -> dict[str, Any]:
    assert evaluated.end.code == 0, evaluated.end.stderr
    return dict(json.loads((evaluated.folder / "report.json").read_text()))


def test_every_figure_lies_in_its_interval_or_at_its_end(report: dict[str, Any]) -> None:
    for task in report["tasks"].values():
        for own in task["figures"].values():
            assert own["low"] <= own["high"]
            assert own["low"] - 1e-9 <= own["value"] <= own["high"] + 1e-9


def test_a_report_says_all_that_makes_it_again(report: dict[str, Any]) -> None:
    protocol = report["protocol"]
    assert len(protocol["checkpoint"]) == len(protocol["config"]) == 64
    assert protocol["step"] == 20
    assert {"torch", "numpy", "oneflow_dist"} <= protocol["libraries"].keys()
    paint = report["tasks"]["paint"]
    assert (paint["items"], paint["documents"], len(paint["items_sha256"])) == (7, 7, 64)
    assert report["tasks"]["describe"]["documents"] == 10
    assert paint["settings"]["sampling"] == ["steps=3"]
    assert paint["settings"]["seed"] == 0


def test_memorisation_stands_in_every_table_whose_training_data_are_named(report: dict[str, Any]) -> None:
    assert "copied_pictures" in report["tasks"]["paint"]["figures"]
    assert any("nearest training picture" in note for note in report["tasks"]["paint"]["notes"])


def test_a_table_has_every_figure_of_every_task(report: dict[str, Any]) -> None:
    table = as_table(report)
    for name, task in report["tasks"].items():
        assert f"{name}: {task['documents']} documents" in table
        for figure, own in task["figures"].items():
            assert any(
                line.split()[0] == figure.split()[0] and f"{own['value']:.4f}" in line for line in table.split("\n")
            )


def test_answers_lie_beside_the_report(evaluated: Run) -> None:
    folder: Path = evaluated.folder
    assert {path.name for path in (folder / "answers").iterdir()} == {"paint", "describe", "count", "choose"}
