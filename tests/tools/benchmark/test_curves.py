from __future__ import annotations

import numpy as np

from tools.benchmark import blocks, prompts
from tools.benchmark.curves import curves_of, draw_curves

STEPS = {"1 x 64": [2.0, 3.0, 9.0], "4 x 64": [5.0], "1 guided x 64": [4.0], "4 x 8": [4.0], "1 x 8": [1.0]}
TIMES = {"in blocks x 64": [1.0], "whole x 64": [1.0], "in blocks x 128": [2.0], "whole x 128": [3.0]}
SERIES = {
    prompts.ALL: STEPS,
    prompts.KEPT: STEPS,
    blocks.SECONDS: TIMES,
    blocks.ROWS: TIMES | {"whole, in as many steps x 64": [4.0], "whole, in as many steps x 128": [9.0]},
}


def test_a_curve_has_the_median_of_each_number_of_rows() -> None:
    assert curves_of(STEPS) == {"1": {64: 3.0, 8: 1.0}, "4": {64: 5.0, 8: 4.0}, "1 guided": {64: 4.0}}


def test_both_sides_of_a_step_and_each_way_of_writing_are_drawn() -> None:
    steps, seconds, rows = draw_curves(SERIES, "title").axes
    assert [line.get_label() for line in steps.lines] == [
        f"{side}, {documents}" for side in ("all rows", "prompt kept") for documents in ("1 document", "4 documents")
    ]
    for line in steps.lines[:2]:
        assert np.array_equal(line.get_xdata(), [8, 64])
    assert np.array_equal(steps.lines[0].get_ydata(), [1.0, 3.0])
    assert len({(line.get_color(), line.get_linestyle()) for line in steps.lines}) == 4
    assert [line.get_label() for line in seconds.lines] == [blocks.BLOCKS, blocks.WHOLE]
    assert [line.get_label() for line in rows.lines] == [blocks.BLOCKS, blocks.WHOLE, blocks.AS_MANY]
    assert [text.get_text() for text in rows.get_xticklabels()] == ["64", "128"]
    assert {axes.get_yscale() for axes in (steps, seconds, rows)} == {"log"}
