from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.ladders import apart_of, as_lines, draw, faults_of, merit_of

RUNGS = ["shuffled", "untrained", "trained", "data"]


def figures(*values: float, half: float = 0.05) -> dict[str, dict[str, float]]:
    """A figure of each rung, with intervals of one width."""
    return {
        rung: {"value": value, "low": value - half, "high": value + half}
        for rung, value in zip(RUNGS, values, strict=True)
    }


def test_rungs_in_order_have_no_faults_and_are_apart() -> None:
    own = figures(0.1, 0.0, 0.5, 0.9)
    assert faults_of(RUNGS, own, 1) == []
    assert apart_of(RUNGS, own, 1) == ["untrained | trained", "trained | data"]


def test_a_better_rung_below_a_worse_one_is_a_fault_beyond_their_intervals() -> None:
    assert faults_of(RUNGS, figures(0.1, 0.0, 0.95, 0.5), 1) == ["trained > data"]
    assert faults_of(RUNGS, figures(0.1, 0.0, 0.95, 0.9), 1) == []
    assert faults_of(RUNGS, figures(0.7, 0.0, 0.5, 0.9), 1) == ["shuffled > trained"]


def test_of_a_distance_less_is_better() -> None:
    assert merit_of("KID (efficientnet-lite0)") == -1
    own = figures(3.0, 9.0, 3.0, 0.0)
    assert faults_of(RUNGS, own, -1) == []
    assert faults_of(RUNGS, figures(3.0, 9.0, 3.0, 5.0), -1) == ["trained < data"]
    assert len(apart_of(RUNGS, own, -1)) == 2


def test_what_is_neither_good_nor_bad_stands_on_no_ladder() -> None:
    assert merit_of("distinct_2") == merit_of("copied_pictures") == merit_of("forwards_to_image") == 0
    assert merit_of("agreement") == merit_of("cider") == 1


def test_lines_and_plot_have_each_figure_with_a_better_side(tmp_path: Path) -> None:
    tasks = {"one": {"cider": figures(0.1, 0.0, 0.95, 0.5), "distinct_1": figures(0.1, 0.0, 0.5, 0.9)}}
    report = {"rungs": RUNGS, "tasks": tasks}
    lines = [*as_lines(report)]
    assert len(lines) == 2
    assert "WRONG: trained > data" in lines[1]
    draw(tmp_path / "ladder.png", report)
    with Image.open(tmp_path / "ladder.png") as page:
        assert np.asarray(page.convert("L")).std() > 1.0
