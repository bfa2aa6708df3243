from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.evaluation.suite import Suite, config_of, limit_suite, load_suite, write_suite
from tests.launching import ROOT
from tests.messages import names, refused

SUITES = sorted((ROOT / "configs" / "suites").glob("*.toml"))
TASK = '[task.one]\nsource = "prompts"\nprompts = ["a"]\nscores = ["captions"]\n'


def write(folder: Path, text: str) -> Path:
    (folder / "suite.toml").write_text(text)
    return folder / "suite.toml"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_of_the_project_is_read_and_written_back(path: Path, tmp_path: Path) -> None:
    suite = load_suite(path)
    assert load_suite(write(tmp_path, write_suite(suite))) == suite


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["task"]),
        (TASK.replace("prompts = ", "promts = "), ["task.one.promts", "task.one.prompts"]),
        (TASK.replace('["captions"]', "[]"), ["task.one.scores"]),
        (TASK.replace('"captions"', '"spice"'), ["task.one.scores[0]", "'spice'"]),
        (TASK.replace("task.one", "task.One"), ["task.One"]),
        (TASK.replace('prompts = ["a"]\n', ""), ["task.one.prompts", 0]),
        (TASK + 'path = "x"\n', ["task.one.path", '"x"']),
        (TASK + "repeats = 0\n", ["task.one.repeats", 0]),
        (TASK + 'answer = "bound"\n', ["task.one.scores", '"bound"', '"exact"']),
        (TASK.replace('"captions"', '"labels"'), ["task.one.labelled", "labels"]),
        (TASK.replace('"captions"', '"chair"'), ["task.one.objects", "chair"]),
        ('[task.one]\nsource = "shards"\npath = "x"\nscores = ["captions"]\n', ["task.one.prompt"]),
        ("[task", ["TOML"]),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_key(text: str, parts: list[object], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert names(refused(load_suite, path), path, *parts)


def test_a_quick_look_asks_less_of_everything(suite: Suite) -> None:
    short = limit_suite(suite, 2)
    assert {task.count for task in short.task.values()} == {2}
    assert short.task["describe"].repeats == 2
    assert limit_suite(suite, 1).task["describe"].repeats == 1
    assert limit_suite(suite, 100).task["paint"].count == 7


def test_a_missing_suite_says_where_there_are_some(tmp_path: Path) -> None:
    assert names(refused(load_suite, tmp_path / "no.toml"), tmp_path / "no.toml", "configs/suites")


def test_a_task_changes_of_generation_what_it_names(suite: Suite, config: Config) -> None:
    own = config_of(suite.task["paint"], config)
    assert own.sampling.steps == 3
    assert own.sampling.max_rows == config.sampling.max_rows
    guided = replace(suite.task["paint"], sampling=("guidance.image=5", "solver=heun"))
    assert config_of(guided, config).sampling.guidance == {**config.sampling.guidance, "image": 5.0}
    assert config_of(guided, config).sampling.solver == "heun"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stps=3", ["sampling.stps", "sampling.steps"]),
        ("steps=0", ["sampling.steps", 0]),
        ("steps", ["sampling.steps"]),
    ],
)
def test_what_the_sampler_cannot_do_is_refused(
    override: str, parts: list[object], suite: Suite, config: Config
) -> None:
    assert names(refused(config_of, replace(suite.task["paint"], sampling=(override,)), config), *parts)
