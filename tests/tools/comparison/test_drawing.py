from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex

from tests.tools.comparison.made_up import CONFIGS, outcomes
from tools.comparison.drawing import COLOURS, draw, styles_of
from tools.comparison.figures import FIGURES


def test_every_drawn_figure_stands_over_flops_and_over_seconds(tmp_path: Path) -> None:
    found = outcomes(tmp_path)
    panels = [panel for half in draw(found, "a note").subfigs for panel in half.axes if panel.lines]
    drawn = [figure.title for figure in FIGURES if figure.is_drawn]
    assert [panel.get_title(loc="left").splitlines()[0] for panel in panels] == 2 * drawn
    assert [panel.get_xlabel() for panel in panels[:: len(drawn)]] == ["TFLOP of training", "seconds of training"]
    for panel in panels:
        assert panel.get_xscale() == "log"
        means = {str(line.get_label()): line for line in panel.lines if not str(line.get_label()).startswith("_")}
        assert list(means) == list(CONFIGS)
        assert [to_hex(line.get_color()) for line in means.values()] == list(COLOURS.values())
        assert len(panel.lines) == len(means) * (1 + 2)  # and each seed
    line = panels[0].lines[2]
    assert np.allclose(np.asarray(line.get_xdata(), dtype=float), found[0].flops.mean(0) / 1e12)
    assert np.allclose(np.asarray(line.get_ydata(), dtype=float), found[0].values(FIGURES[0]).mean(0))


def test_configs_of_one_objective_have_its_colour_and_lines_of_their_own(tmp_path: Path) -> None:
    first = outcomes(tmp_path)[0]
    twin = dataclasses.replace(first, contender=dataclasses.replace(first.contender, name="twin"))
    (style, colour), (other, same) = styles_of([first, twin])
    assert style != other
    assert colour == same


def test_one_run_is_drawn_too(tmp_path: Path) -> None:
    page = draw(outcomes(tmp_path, seeds=[0])[:1], "a note")
    page.savefig(tmp_path / "page.png", dpi=20)
    assert (tmp_path / "page.png").stat().st_size > 1000
