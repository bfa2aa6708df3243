from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from oneflow_dist.evaluation.answers import Answer
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.items import Item, read_items
from oneflow_dist.evaluation.rungs import shuffle, write_data
from oneflow_dist.evaluation.scoring import match, score
from oneflow_dist.evaluation.suite import Suite, SuiteConfig, TaskConfig
from tests.messages import names, refused


def test_shuffled_answers_are_those_to_other_items(make_answer: Callable[..., Answer]) -> None:
    answers = [make_answer(key, f"text of {key}") for key in "abcd"]
    shuffled = shuffle(answers)
    assert [answer.key for answer in shuffled] == [*"abcd"]
    assert all(one.text != other.text for one, other in zip(answers, shuffled, strict=True))
    assert sorted(answer.text for answer in shuffled) == sorted(answer.text for answer in answers)


def test_held_out_data_score_as_well_as_can_be(suite: Suite, tmp_path: Path) -> None:
    for name, figure in (("paint", "agreement"), ("describe", "agreement"), ("count", "document")):
        task = replace(suite.task[name], count=0 if name == "count" else 40)
        items = read_items(name, task)
        scored = score(match(name, task, suite.suite, items, write_data(task, items, tmp_path / name)))
        assert scored.measures[figure].value > 0.9, name


def test_a_pair_of_shards_is_a_document_too(digits: Path, tmp_path: Path) -> None:
    task = TaskConfig(
        source="prompts", prompts=("",), repeats=3, held_out=f"{digits}/single-heldout-*.tar", scores=("captions",)
    )
    for answer in write_data(task, read_items("single", task), tmp_path):
        assert len(answer.images) == 1
        assert answer.text
        assert answer.pictures()[0].size == (8, 8)


def test_documents_of_shards_are_answers(suite: Suite, tmp_path: Path) -> None:
    task = suite.task["count"]
    answers = write_data(task, read_items("count", task), tmp_path)
    judge = Judge.of(Path(task.labelled))
    for answer in answers:
        assert [part.image == "" for part in answer.parts] == [True, False] * (len(answer.parts) // 2)
        seen = judge.read(answer.pictures())
        said = [part.text for part in answer.parts if part.text]
        assert np.mean([a == b for a, b in zip(seen, said, strict=True)]) > 0.5


def test_a_truth_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    task = TaskConfig(source="prompts", prompts=("a",), scores=("captions",))
    message = refused(write_data, task, [Item(key="k", fields={}, prompt="a")], tmp_path)
    assert names(message, "item k", "references", "held_out")
    assert SuiteConfig() == SuiteConfig()
