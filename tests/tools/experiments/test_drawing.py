from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import SubFigure

from tests.tools.experiments.making import TEXT, load, measured
from tools.experiments.drawing import columns_of, draw, legend_columns
from tools.experiments.results import Results


def test_what_is_varied_becomes_lines_and_what_is_not_rows(tmp_path: Path) -> None:
    rows = [("written", x, "told_right", 0.1 * x) for x in (1.0, 2.0)]
    results = Results(load(tmp_path), tuple(measured(arm, seed, rows) for arm in ("one", "two") for seed in (0, 1)))
    (band,) = draw(results).subfigs
    (lines,) = band.axes
    assert {tuple(line.get_xdata()) for line in lines.get_lines() if len(line.get_xdata()) == 2} >= {(1.0, 2.0)}
    assert names_of(band) == ["one", "two"]
    single = Results(load(tmp_path), tuple(measured(arm, 0, rows[:1]) for arm in ("one", "two")))
    (band,) = draw(single).subfigs
    (panel,) = band.axes
    assert not band.legends
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["one", "two"]


def test_worlds_have_panels_of_their_own_and_share_the_legend(tmp_path: Path) -> None:
    arms = "".join(f'[arm."{world}, {way}"]\n' for world in ("land", "sea") for way in ("fast", "slow"))
    text = TEXT.replace("[arm.exact]", f"{arms}[arm.exact]").replace(
        'of = "told_right"', 'of = "told_right"\nis_split = true'
    )
    rows = [("written", x, "told_right", 0.1 * x) for x in (1.0, 2.0)]
    names = [f"{world}, {way}" for world in ("land", "sea") for way in ("fast", "slow")]
    results = Results(load(tmp_path, text), tuple(measured(arm, 0, rows) for arm in names))
    (band,) = draw(results).subfigs
    assert [axis.get_title(loc="left").partition(":")[0] for axis in band.axes] == ["land", "sea"]
    assert names_of(band) == ["fast", "slow"]


def test_every_probe_has_a_band_and_a_legend_of_its_own(tmp_path: Path) -> None:
    found = measured("one", 0, [("written", x, "told_right", 0.1) for x in (1.0, 2.0)])
    exact = [("exact", (way, x, "tv", 0.2)) for way in ("gate", "rate") for x in (1.0, 2.0)]
    written, below = draw(Results(load(tmp_path), (found, measured("exact", 0, []) | {"rows": exact}))).subfigs
    assert not written.legends, "of one line"
    assert names_of(below) == ["gate", "rate"], "all of them are of the arm `exact`"


def names_of(band: SubFigure) -> list[str]:
    (legend,) = band.legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_legend_has_as_many_rows_as_its_words_need() -> None:
    assert legend_columns(["one", "two"], 4.0) == 2
    assert legend_columns(["what is said at some length"] * 4, 6.0) == 2
    assert legend_columns(["what is said at some length"] * 5, 3.0) == 1


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (4, 4), (5, 3), (7, 4), (9, 3)])
def test_rows_are_few_and_as_full_as_each_other(panels: int, columns: int) -> None:
    assert columns_of(panels) == columns
