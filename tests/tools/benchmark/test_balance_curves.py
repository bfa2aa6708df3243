"""The picture of equal work: a panel for each kind, with what its packs have."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from tools.benchmark.balance import BALANCE, ENOUGH, ROWS, WORK
from tools.benchmark.balance_curves import draw_balance
from tools.benchmark.result import Series


@pytest.fixture
def series() -> Series:
    """Two kinds; the size of packs was looked at for the second alone."""
    cases = [f"{kind}, {packing}" for kind in ("captions", "books") for packing in ("oldest", "balanced")]
    work = dict(zip(cases, ([0.9, 1.1], [1.0, 1.0], [0.5, 9.0], [0.9, 1.1]), strict=True))
    steps = dict(zip(cases, ([80.0], [100.0], [50.0, 25.0], [80.0, 80.0]), strict=True))
    sizes = {f"books, {packing} x {size}": [50.0 + size] for packing in ("oldest", "balanced") for size in (1, 2)}
    enough = {"captions": [1.5], "books": [5.0]}
    return {BALANCE.format(8): steps, WORK: work, ROWS.format(8): sizes, ENOUGH: enough}


def test_each_kind_says_how_much_more_than_the_mean_the_slowest_has(series: Series) -> None:
    axes = {axes.get_title(loc="left"): axes for axes in draw_balance(series, "title").axes}
    assert [text.get_text() for text in axes["books: % of packs"].texts] == [
        "oldest: the slowest 2.67",  # 100 / 37.5
        "balanced: the slowest 1.25",
    ]
    assert [text.get_text() for text in axes["mean / most over 8 ranks"].texts] == ["80.0", "100.0", "37.5", "80.0"]


def test_the_size_of_packs_has_a_curve_for_each_way_and_a_line_where_it_is_enough(series: Series) -> None:
    (sizes,) = (axes for axes in draw_balance(series, "title").axes if "books: mean" in axes.get_title(loc="left"))
    *curves, enough = sizes.lines
    assert [np.asarray(curve.get_ydata()).tolist() for curve in curves] == [[51.0, 52.0]] * 2
    assert np.asarray(enough.get_xdata()).tolist() == [5.0, 5.0]


def test_packs_beyond_the_panel_are_counted_at_its_end(series: Series) -> None:
    (packs,) = (
        axes for axes in draw_balance(series, "title").axes if axes.get_title(loc="left") == "books: % of packs"
    )
    oldest = packs.patches[0]
    assert isinstance(oldest, StepPatch)
    values, edges, _ = oldest.get_data()
    assert values[-1] == values.sum() / 2 == 50.0
    assert edges[-1] == pytest.approx(packs.get_xlim()[1])
