from __future__ import annotations

from pathlib import Path

from tests.messages import names, refused
from tests.tools.experiments.making import TEXT, load
from tools.experiments.measuring import measure


def test_rows_have_the_name_of_their_probe_and_are_those_of_the_experiments_figures(tmp_path: Path) -> None:
    rows = measure(load(tmp_path), "exact", 0, tmp_path)
    assert [(name, row.way, row.x, row.figure) for name, row in rows] == [
        ("exact", "gate", 1.0, "tv"),
        ("exact", "gate", 2.0, "tv"),
    ]
    assert measure(load(tmp_path), "exact", 1, tmp_path) == []  # one seed is enough for it


def test_a_figure_that_its_probe_does_not_give_is_refused(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace("[figure.tv]", "[figure.beauty]"))
    assert names(refused(measure, experiment, "exact", 0, tmp_path), "small", "exact", "beauty")
