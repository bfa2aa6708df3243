"""The suites of the paper's tables, from the question to the official files, on folders of the benchmarks' form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.generation import Respondent, list_groups, write_answers
from oneflow_dist.evaluation.metrics import features
from oneflow_dist.evaluation.report import ANSWERS, RUN, load_items, score_suite
from oneflow_dist.evaluation.suite import Suite, SuiteConfig
from oneflow_dist.model.oneflow import OneFlow
from tests.evaluation.benchmarks import IDS, make_benchmarks, suite_at

ELSEWHERE = ("meteor", "alignment")  # what they need is no part of the tests' environment


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    make_benchmarks(folder)
    return folder


@pytest.fixture
def respondent(config: Config, tokenizer: Tokenizer, make_model: Callable[..., OneFlow]) -> Respondent:
    return Respondent(make_model(config, noise=0.05).eval(), config, tokenizer)


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a network that sees."""
    extractor = features.Extractor(
        name="colours",
        sha256="0" * 64,
        size=1,
        dim=3,
        is_official=False,
        _rows=lambda pictures: np.stack([np.asarray(p, dtype=np.float32).mean((0, 1)) for p in pictures]),
    )
    monkeypatch.setattr(features, "load_extractor", lambda *_: extractor)


def in_small(suite: Suite) -> Suite:
    """The same in few steps, without what is not installed here."""
    tasks = {
        name: replace(
            task,
            sampling=("steps=2", "max_rows=256"),
            scores=tuple(score for score in task.scores if score not in ELSEWHERE),
        )
        for name, task in suite.task.items()
    }
    return Suite(suite=SuiteConfig(), task=tasks)


@pytest.mark.parametrize("name", ["paper_table2", "paper_table3"])
def test_a_table_of_the_paper_comes_to_its_end(
    name: str, benchmarks: Path, respondent: Respondent, tmp_path: Path
) -> None:
    suite = in_small(suite_at(name, benchmarks))
    items = load_items(suite)
    groups = [group for task, own in items.items() for group in list_groups(task, suite.task[task], own)]
    write_answers(respondent, groups, tmp_path / ANSWERS, 0, 1)
    (tmp_path / RUN).write_text("{}")
    report = score_suite(suite, tmp_path, items)
    assert report["tasks"].keys() == suite.task.keys()
    for task, own in report["tasks"].items():
        assert own["items"] == len(items[task])
    official = tmp_path / "official"
    if name == "paper_table2":
        results = json.loads((official / "coco_captions" / "results.json").read_text())
        assert {row["image_id"] for row in results} <= set(IDS)
        assert len([*(official / "geneval" / "00000" / "samples").iterdir()]) == 4
        grid = next((official / "dpg").glob("*.png"))
        with Image.open(grid) as page:
            assert page.size == (16, 16)  # four of 8x8
    else:
        assert (official / "pope_random" / "answers.json").read_text().count("\n") == len(items["pope_random"])
        rows = json.loads((official / "vqav2" / "results.json").read_text())
        assert [row["question_id"] for row in rows] == [item.fields["question_id"] for item in items["vqav2"]]
