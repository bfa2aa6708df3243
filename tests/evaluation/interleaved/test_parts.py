from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, read_answers, write_line
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.figures import measure_ranks
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.parts import describe, score_documents, score_figures, score_part
from tests.evaluation.interleaved.made_up import ICONS, Said, Shown, write_answers, write_document
from tests.messages import naming
from tests.precompute.making import picture
from tools.interleaved.make import write_items, write_stories

ONE, TWO = ["one red fish"], ["one red fish", "two blue mouse"]
RIGHT = (Said("first one red fish", (1, 2)), Shown("one red fish", 1, 3))
ITEMS = {"0000": {"scenes": ONE}, "0001": {"scenes": TWO}}
WITH_STEPS = {"birth", "beside", "early", "agreement_early"}
WITH_STEPS |= {f"{what}_to_{which}" for what in ("forwards", "part") for which in ("sentence", "image")}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    write_stories(folder, ICONS, 1, 0)
    write_items(folder, [{"key": key, **fields} for key, fields in ITEMS.items()])
    return folder


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """Twelve items of two figures each, and answers of which the odd ones are the wrong figure."""
    for folder in ("benchmark/pictures", f"answers/{PICTURES}"):
        (tmp_path / folder).mkdir(parents=True)
    lines = ""
    for number in range(12):
        for side, name in ((0, "own"), (1, "other")):
            picture(2 * number + side, 24, 24).save(tmp_path / f"benchmark/pictures/{number}-{name}.jpg")
        picture(2 * number + number % 2, 24, 24).save(tmp_path / f"answers/{PICTURES}/{number}.png")
        lines += write_line(Answer(key=f"{number}", number=0, parts=(Part(image=f"{number}.png"),)))
    (tmp_path / "answers/0.jsonl").write_text(lines)
    names = ("own", "other")
    items = [{"key": f"{n}", "pictures": [f"pictures/{n}-{name}.jpg" for name in names]} for n in range(12)]
    write_items(tmp_path / "benchmark", items)
    return tmp_path


@contextmanager
def few_open_files(spare: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not files
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_part_is_scored_from_its_files(stories: Path, tmp_path: Path, judge: Judge) -> None:
    write_answers(tmp_path, {"0000": RIGHT, "0001": RIGHT}, steps=4)
    report = score_part("stories", stories, tmp_path)
    assert [report.pop(name) for name in ("documents", "items", "items_asked")] == [2, 2, 2]
    measures = score_documents("stories", [*ITEMS.values()], read_answers(tmp_path), judge)
    assert report == {name: describe(measure) for name, measure in measures.items()}
    assert (report["document"]["value"], report["agreement"]["value"]) == (0.5, 1.0)
    assert report.keys() >= WITH_STEPS


def test_without_steps_there_are_no_figures_of_time(judge: Judge, tmp_path: Path) -> None:
    answer = write_document(tmp_path, Said("first one red fish"), Shown("one red fish"))
    found = score_documents("stories", [{"scenes": ONE}], [answer], judge)
    assert found["document"].value == 1.0
    assert not found.keys() & WITH_STEPS


def test_empty_answers_are_wrong_and_nothing_else(judge: Judge) -> None:
    answer = Answer(key="0000", number=0, parts=())
    for part, fields in (("stories", {"scenes": ONE}), ("counting", {"longest": 5})):
        found = score_documents(part, [fields], [answer], judge)
        assert {name: measure.value for name, measure in found.items()} == dict.fromkeys(
            ("number", "place", "order", "text", "document"), 0.0
        )


def test_answers_to_half_of_the_items_are_told(stories: Path, tmp_path: Path) -> None:
    report = score_part("stories", stories, write_answers(tmp_path, {"0001": RIGHT}))
    assert [report[name] for name in ("documents", "items", "items_asked")] == [1, 1, 2]


def test_an_answer_to_no_item_is_named(stories: Path, tmp_path: Path) -> None:
    write_answers(tmp_path, {"0000": RIGHT, "0007": RIGHT})
    with pytest.raises(ValueError, match=naming(tmp_path, "0007", stories)):
        score_part("stories", stories, tmp_path)


def test_an_answer_that_is_there_twice_is_named(stories: Path, tmp_path: Path) -> None:
    path = write_answers(tmp_path, {"0001": RIGHT}) / "000000.jsonl"
    path.write_text(2 * path.read_text())
    with pytest.raises(ValueError, match=naming(tmp_path, 0, "0001")):
        score_part("stories", stories, tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]\n", "{}\n"])
def test_items_that_cannot_be_read_are_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(ValueError, match=naming(tmp_path / "items.jsonl")):
        score_part("stories", tmp_path, tmp_path)


def test_figures_are_ranked_without_opening_all_of_them_at_once(figures: Path) -> None:
    with few_open_files(8):
        report: dict[str, Any] = score_part("figures", figures / "benchmark", figures / "answers")
    assert [report.pop(name) for name in ("documents", "items", "items_asked")] == [12, 12, 12]
    assert report == {name: describe(measure) for name, measure in measure_ranks([1, 2] * 6, 2).items()}


def test_where_no_figure_was_painted_it_comes_last() -> None:
    choices = [picture(seed) for seed in range(4)]
    found = score_figures([choices], [Answer(key="0", number=0, parts=(Part(text="a fish"),))])
    assert (found["recall_1"].value, found["reciprocal_rank"].value) == (0.0, 1 / 4)


def test_a_figure_that_is_missing_is_named(figures: Path) -> None:
    (figures / "benchmark/pictures/3-other.jpg").unlink()
    with pytest.raises(ValueError, match=naming(figures / "benchmark/pictures/3-other.jpg")):
        score_part("figures", figures / "benchmark", figures / "answers")


def test_a_figure_is_described_with_its_interval() -> None:
    measure = Measure.mean_of([True, False, True, True])
    assert describe(measure) == {
        "value": 0.75,
        **dict(zip(("low", "high"), measure.interval(), strict=True)),
    }
    assert json.loads(json.dumps(describe(measure))) == describe(measure)
