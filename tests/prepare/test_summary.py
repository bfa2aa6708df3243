from __future__ import annotations

from collections import Counter

from oneflow_dist.prepare.recipe import GENEROUS
from oneflow_dist.prepare.statistics import Statistics, measure
from oneflow_dist.prepare.summary import Outcome, draw_histogram, write_summary
from tests.prepare.prepared import a_sample


def page(statistics: Statistics) -> str:
    return write_summary(
        Outcome(
            source="photos",
            kind="pictures with .txt beside them",
            unread={"doc": 3},
            num_items=12345,
            statistics=statistics,
            num_groups=2,
            num_near=5,
            num_dropped=0,
            train={"pairs": 900},
            held_out={"pairs": 100},
            pictures="pictures cut to 1 size",
            vocab_size=520,
            capacities=GENEROUS,
            padding=0.015,
            next_commands=["oneflow train out/config.toml"],
        )
    )


def test_a_page_fits_on_a_screen_whatever_went_wrong() -> None:
    problems = [{"name": f"{n}.png", "reason": f"reason {chr(97 + n % 20)}"} for n in range(200)]
    samples = [a_sample(n, done=(f"change {n}",)) for n in range(30)]
    text = page(measure(samples, problems, [1, 2]))
    assert len(text.splitlines()) <= 45
    assert "- 10 reason a: 0.png, 20.png, 40.png and 7 more" in text
    assert "- and 12 more kinds" in text
    assert "3 doc" in text
    assert "1.5% padding" in text
    assert text.splitlines()[-1] == "    oneflow train out/config.toml"


def test_a_page_about_texts_says_nothing_of_pictures() -> None:
    text = page(measure([a_sample(1, "texts", [], turns=(("", ("ab",)),))], [], [1]))
    assert "sides" not in text
    assert "problems.jsonl" not in text


def test_a_histogram_has_a_block_for_each_power_of_two() -> None:
    assert draw_histogram(Counter({32: 1, 128: 70, 256: 7})) == "32 [▂ █▂] 511 pixels, doubling"
    assert draw_histogram(Counter({64: 5})) == "64 [█] 127 pixels, doubling"
