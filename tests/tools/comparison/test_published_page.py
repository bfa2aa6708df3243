from __future__ import annotations

from tests.tools.comparison.test_published_plans import outcome
from tools.comparison.published_page import COLOURS, draw, page
from tools.comparison.published_plans import summary
from tools.comparison.published_runs import RUNS

OUTCOMES = [outcome(100, 110), outcome(100, 80, name="worst"), outcome(100, 120, is_judged=False, name="own")]


def test_a_page_has_every_run_and_brackets_what_is_not_judged() -> None:
    text = page(OUTCOMES, summary(OUTCOMES))
    assert "Of 2 runs the mean error is 15.0%" in text
    assert "| nanochat | worst | 100 | 80 | -20.0% |" in text
    assert "| nanochat | own | 100 | 120 | (+20.0%) |" in text


def test_a_picture_has_a_bar_for_every_run() -> None:
    left, right = draw(OUTCOMES, summary(OUTCOMES)).axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["nanochat x", "nanochat worst", "nanochat own"]
    assert sorted(text.get_text() for text in right.texts) == ["+10%", "+20%", "-20%"]
    assert left.get_xlabel() == "published MFU, %"


def test_every_system_has_a_colour() -> None:
    assert {run.system for run in RUNS} <= COLOURS.keys()
