from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_rgba

from tests.tools.benchmark.made_up import LINES, MACHINE, product, step
from tools.benchmark.drawing import FLOAT8, OURS, PEER, draw, draw_contests, draw_ratios, draw_series, draw_steps


def test_ours_float8_and_the_peer_are_told_apart() -> None:
    colours = {patch.get_facecolor() for patch in draw_steps(LINES).axes[0].patches}
    assert colours == {to_rgba(OURS), to_rgba(FLOAT8), to_rgba(PEER)}


def test_a_picture_has_a_panel_for_each_case_with_the_ratio_of_each_peer(tmp_path: Path) -> None:
    figure = draw_contests(LINES)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [f"case {number}" for number in range(4)]
    assert [text.get_text() for text in figure.axes[1].texts] == ["30", "90   3.00x"]
    assert "No module named liger" in [text.get_text() for text in figure.axes[0].texts]
    assert {patch.get_facecolor() for patch in figure.axes[1].patches} == {to_rgba(OURS), to_rgba(PEER)}


def test_what_there_are_no_numbers_for_is_not_drawn(tmp_path: Path) -> None:
    draw([MACHINE | {"vendor_bf16_tflops": None}, step("ours bf16 eager none", peak_gib=None)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"steps.png"}


def test_bars_are_as_long_as_the_mean_and_marks_say_what_it_is_compared_with() -> None:
    name = "ours bf16 compiled none"
    plan = {"kind": "plan", "name": "plan bf16 none", "peak_gib": 60.0}
    rates, shares, memory = draw_steps([MACHINE, product(800.0), plan, step(name, 1e4), step(name, 2e4)]).axes
    for axes, length in ((rates, 15.0), (shares, 40.0), (memory, 50.0)):
        assert [patch.get_width() for patch in axes.patches] == [pytest.approx(length)]
    marks = [line.get_xdata()[0] for axes in (shares, memory) for line in axes.lines if line.get_marker() == "|"]
    assert marks == [pytest.approx(50.0), 60.0]


def test_a_panel_for_each_series_with_the_mean_and_the_peer_told_apart() -> None:
    series = {"ms": {"ours": [1.0, 3.0], "torchtitan": [4.0]}, "rows": {"ours": [7.0]}, "us": {"ours": [5.0, 7.0]}}
    first, second = draw_series(series, "title").axes
    assert [patch.get_width() for patch in (*first.patches, *second.patches)] == [2.0, 4.0, 6.0]
    assert [patch.get_facecolor() for patch in first.patches] == [to_rgba(OURS), to_rgba(PEER)]
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("ms", "us")


def test_single_values_of_the_same_names_stand_side_by_side() -> None:
    series = {"expected": {"mlp": [2.0], "all": [3.0]}, "ratio": {"rows": [0.5]}, "drawn": {"mlp": [2.5], "all": [4.0]}}
    parts, ratio = draw_series(series, "title").axes
    assert [patch.get_width() for patch in parts.patches] == [2.0, 3.0, 2.5, 4.0]
    assert [text.get_text() for text in parts.get_legend().get_texts()] == ["expected", "drawn"]
    assert [patch.get_width() for patch in ratio.patches] == [0.5]


def test_a_ratio_that_is_noise_is_told_apart() -> None:
    (axes,) = draw_ratios({"same": (0.9, 1.0, 1.1), "slower": (1.1, 1.2, 1.3)}, "title").axes
    (same, _, slower, _, one) = axes.lines
    assert (list(same.get_xdata()), list(slower.get_xdata()), list(one.get_xdata())) == (
        [0.9, 1.1],
        [1.1, 1.3],
        [1.0, 1.0],
    )
    assert same.get_color() != slower.get_color()
