from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.experiments.making import load, made_up, measured
from tools.experiments.plan import plan_tasks
from tools.experiments.results import (
    Point,
    Results,
    load_results,
    read_results,
    results_path,
    save_results,
    series_of,
    take_in,
)


def test_values_are_those_of_all_seeds_by_the_name_that_the_experiment_gives_them(tmp_path: Path) -> None:
    results = made_up(load(tmp_path), [0.5, 0.7], [0.2, 0.4])
    assert results.values["share"] == {Point("one", 2.0): [0.5, 0.7], Point("two", 2.0): [0.2, 0.4]}
    assert results.at("one@2:share").mean == pytest.approx(0.6)
    assert results.seeds == [0, 1]


def test_rows_of_a_probe_that_the_figure_does_not_come_from_are_no_part_of_it(tmp_path: Path) -> None:
    results = Results(
        load(tmp_path), (measured("exact", 0, [("exact", 1.0, "tv", 0.7), ("exact", 1.0, "told_right", 1.0)]),)
    )
    assert results.values["share"] == {}
    assert results.values["tv"] == {Point("exact", 1.0): [0.7]}


def test_a_number_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    results = made_up(load(tmp_path), [0.5], [0.2])
    assert names(refused(results.at, "one@4:share"), "small", "one@4:share", "one@2", "two@2")
    assert names(refused(results.at, "one@2:part"), "one@2:part", "share", "tv")


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    results, path = made_up(experiment, [0.5, 0.7], [0.2, 0.4]), tmp_path / "small.jsonl"
    save_results(results, path)
    assert load_results(experiment, path).estimates == results.estimates
    path.write_text("{")
    assert names(refused(load_results, experiment, path), path)
    assert names(refused(load_results, experiment, tmp_path / "none"), tmp_path / "none")


def test_series_are_called_by_arm_and_way_and_by_the_way_alone_where_there_is_one_arm(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    assert series_of(experiment, "one", "") == "one"
    assert series_of(experiment, "one", "fast") == "one, fast"


def test_results_of_others_are_taken_once_and_only_those_of_the_same_task(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    tasks = plan_tasks({"small": experiment}, "cpu", 1, tmp_path / "runs")
    tasks[0].path.parent.mkdir(parents=True)
    tasks[0].path.write_text(json.dumps(measured("one", 0, [("written", 1.0, "told_right", 0.5)])))
    save_results(read_results(experiment, tasks), results_path(tmp_path, experiment.name))
    elsewhere = plan_tasks({"small": experiment}, "cpu", 1, tmp_path / "elsewhere")
    assert take_in(experiment, tmp_path, tmp_path / "elsewhere") == 1
    assert [task.path.exists() for task in elsewhere] == [True, False, False, False]
    assert take_in(experiment, tmp_path, tmp_path / "elsewhere") == 0
    assert read_results(experiment, elsewhere).values == read_results(experiment, tasks).values


def test_numbers_of_the_same_seeds_are_compared_seed_by_seed(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    found = made_up(experiment, [0.3, 0.5, 0.9], [0.2, 0.4, 0.8]).compare("one@2:share", "two@2:share")
    assert found.value == pytest.approx(0.1)
    alone = made_up(experiment, [0.3, 0.5, 0.9], [0.2, 0.4]).compare("one@2:share", "two@2:share")
    assert alone.half > 2.0 * found.half
