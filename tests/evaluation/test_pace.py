from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.evaluation.answers import Answer, Part, write_line
from oneflow_dist.evaluation.pace import measure_pace, measure_suite
from oneflow_dist.evaluation.suite import Suite


def write(folder: Path, number: int, sentence: int, seconds: list[float]) -> Answer:
    """A document whose only word is there after the step `sentence`."""
    answer = Answer(
        key=f"{number:04d}", number=0, parts=(Part(text="two", born=(sentence,), tokens=(" two",)),), steps=len(seconds)
    )
    (folder / f"{number:06d}.jsonl").write_text(write_line(answer))
    (folder / f"{number:06d}.seconds.json").write_text(json.dumps(seconds))
    return answer


def test_seconds_are_those_at_the_end_of_a_step(suite: Suite, tmp_path: Path) -> None:
    answers = [write(tmp_path, 0, 2, [0.5, 1.0, 4.0]), write(tmp_path, 1, 1, [2.0, 3.0])]
    found = measure_pace(replace(suite.task["count"], group=1), tmp_path, answers)
    assert {name: measure.value for name, measure in found.items()} == {
        "seconds_to_sentence": pytest.approx(1.5),
        "seconds": pytest.approx(3.5),
    }


def test_only_documents_that_were_written_alone_have_seconds(suite: Suite, tmp_path: Path) -> None:
    assert measure_suite(suite, tmp_path) == {}
    assert not (tmp_path / "pace.json").exists()
    own = tmp_path / "answers" / "count"
    own.mkdir(parents=True)
    write(own, 0, 1, [1.0])
    alone = replace(suite, task={"count": replace(suite.task["count"], group=1)})
    assert measure_suite(alone, tmp_path)["count"]["seconds"]["value"] == 1.0
    assert json.loads((tmp_path / "pace.json").read_text())["count"]["seconds"]["value"] == 1.0
