from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.experiments.making import TEXT, load, made_up
from tools.experiments.report import compare, fill, judge, write_csv, write_page


@pytest.mark.parametrize(
    ("ones", "twos", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.1, 0.11, 0.12], "seen"),
        ([0.1, 0.11, 0.12], [0.9, 0.91, 0.92], "contradicted"),
        ([0.5, 0.6, 0.7], [0.52, 0.62, 0.66], "not seen at this scale"),
        ([0.9], [0.1], "one seed"),
    ],
)
def test_a_claim_is_judged_by_the_seeds(ones: list[float], twos: list[float], verdict: str, tmp_path: Path) -> None:
    assert judge(made_up(load(tmp_path), ones, twos))["larger"].verdict == verdict


def test_a_claim_may_be_about_a_number(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace('smaller = "two@2:share"', 'smaller = "0.25"'))
    assert judge(made_up(experiment, [0.9, 0.92, 0.94], [0.5]))["larger"].verdict == "seen"
    experiment = load(tmp_path, TEXT.replace('larger = "one@2:share"', 'larger = "0.25"'))
    assert judge(made_up(experiment, [0.5], [0.9, 0.92, 0.94]))["larger"].verdict == "contradicted"


def test_the_page_tells_claims_numbers_and_what_they_took(tmp_path: Path) -> None:
    results = made_up(load(tmp_path), [0.9, 0.91, 0.92], [0.1, 0.11, 0.12])
    page = write_page(results, "## Extra")
    for part in (
        "# Small",
        "--seeds 3",
        "**seen**",
        "captions that are right",
        "| one | 2 | 0.910 ±",
        "| two | 2 | 0.110 ±",
        "## Extra",
        "| one | 4 | 0.500 |",
        "a CPU, 2 cores",
    ):
        assert part in page


def test_a_paragraph_is_filled_with_means_and_ranges(tmp_path: Path) -> None:
    results = made_up(load(tmp_path), [0.5, 0.5, 0.5], [0.2, 0.2, 0.2])
    half = results.at("one@2:share").half_range
    assert fill("It is {one@2:share}.", results) == f"It is 0.500 ± {half:.3f}."


def test_what_an_arm_would_say_that_was_left_out_is_not_measured(tmp_path: Path) -> None:
    """Its data are missing: the page is written all the same, and a name that leads nowhere is still refused."""
    far = '[data.far]\nfile = "far.tar"\nprogram = "far.py"\n[arm.two]\ndata = "far"\n'
    results = made_up(load(tmp_path, TEXT.replace("[arm.two]\n", far)), [0.9, 0.91, 0.92], [])
    assert judge(results)["larger"].verdict == "not measured"
    page = write_page(results, "")
    assert "| one | 2 | 0.910 ±" in page
    assert "beside (not measured)." in page
    assert names(refused(fill, "It is {twofold@2:share}.", results), "small", "twofold@2:share", "one@2")
    assert names(refused(judge, made_up(load(tmp_path), [0.9], [])), "two@2:share", "one@2"), "anybody has its data"


def test_the_csv_has_every_number_with_its_seeds(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv(made_up(load(tmp_path), [0.5, 0.7], [0.2, 0.4])))))
    assert [(row["series"], row["x"], row["figure"], row["seeds"]) for row in rows] == [
        ("one", "2", "share", "2"),
        ("two", "2", "share", "2"),
    ]
    assert rows[0]["values"].split() == ["0.5", "0.7"]


def test_numbers_outside_of_their_ranges_are_told(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    committed = made_up(experiment, [0.5, 0.52, 0.48], [0.2, 0.2, 0.2])
    count, lines = compare(made_up(experiment, [0.51], [0.9]), committed)
    assert count == 2
    (line,) = lines
    assert names(line, "small", "two@2:share", "0.9", "0.2")
