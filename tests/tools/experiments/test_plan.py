from __future__ import annotations

from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.experiments.making import TEXT, load
from tools.experiments import plan
from tools.experiments.plan import plan_tasks, probes_of, run_of
from tools.experiments.reading import ROOT, at_scale, load_experiment


def test_arms_of_one_config_share_a_run_and_others_do_not(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace("[arm.exact]", "[arm.same]\n[arm.exact]"))
    folders = {arm: run_of(experiment, arm, "cpu", 0, tmp_path).folder for arm in ("one", "two", "same", "other")}  # type: ignore[union-attr]
    assert folders["one"] == folders["same"]
    assert len(set(folders.values())) == 3
    another = run_of(experiment, "one", "cpu", 1, tmp_path)
    assert another is not None
    assert another.folder != folders["one"]


def test_an_arm_says_the_last_word_and_scales_have_their_own(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    small, large = run_of(experiment, "two", "cpu", 3, tmp_path), run_of(experiment, "two", "h100", 3, tmp_path)
    assert small is not None
    assert large is not None
    assert (small.config.train.steps, small.config.run.seed, small.config.optim.lr) == (5, 3, 1e-4)
    assert (large.config.train.steps, large.base.name, large.hosts) == (7, "oneflow_1b.toml", 1)


def test_a_run_that_begins_with_another_is_named_by_it(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace("[arm.two]", '[arm.two]\nstart = "one"'))
    plain, started = run_of(load(tmp_path), "two", "cpu", 0, tmp_path), run_of(experiment, "two", "cpu", 0, tmp_path)
    assert plain is not None
    assert started is not None
    assert started.start is not None
    assert started.config.init.path == str(started.start.folder)
    assert started.folder != plain.folder


def test_tasks_come_seed_by_seed_and_what_has_no_chance_in_it_once(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    tasks = plan_tasks({"small": experiment}, "cpu", 2, tmp_path)
    assert [(task.arm, task.seed) for task in tasks] == [
        *(("one", 0), ("two", 0), ("other", 0), ("exact", 0)),
        *(("one", 1), ("two", 1), ("other", 1)),
    ]
    assert list(probes_of(experiment, "exact", 0)) == ["exact"]
    assert not probes_of(experiment, "exact", 1)


def test_a_probe_that_asks_something_else_is_another_task(tmp_path: Path) -> None:
    old, new = (
        plan_tasks({"small": load(tmp_path, text)}, "cpu", 1, tmp_path)
        for text in (TEXT, TEXT.replace("documents = 100", "documents = 50"))
    )
    assert [one.path == other.path for one, other in zip(old, new, strict=True)] == [False, False, False, True]


def test_results_have_the_same_names_wherever_the_project_and_its_runs_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that those of another machine are taken in."""
    experiments = {"small": load(tmp_path), "samplers": at_scale(load_experiment("samplers"), "cpu")}
    here = [task.path.name for task in plan_tasks(experiments, "cpu", 1, tmp_path / "runs")]
    (tmp_path / "elsewhere").symlink_to(ROOT)
    monkeypatch.setattr(plan, "ROOT", tmp_path / "elsewhere")
    there = plan_tasks(experiments, "cpu", 1, tmp_path / "other")
    assert [task.path.name for task in there] == here
    assert any(task.run is None and task.model.is_relative_to(tmp_path / "elsewhere") for task in there)


def test_a_config_that_cannot_be_names_its_arm(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace("train.steps=5", "train.steps=0"))
    assert names(refused(run_of, experiment, "two", "cpu", 0, tmp_path), "small", "two", "cpu", "train.steps", 0)


def test_a_released_model_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    tasks = plan_tasks({"samplers": at_scale(load_experiment("samplers"), "cpu")}, "cpu", 1, tmp_path)
    (own,) = [task for task in tasks if task.arm == "long counting"]
    assert own.run is None
    assert (own.model / "oneflow.json").is_file()
