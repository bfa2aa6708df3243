from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.answers import read_answers
from oneflow_dist.evaluation.generation import Group, Respondent, list_groups, write_answers, write_group
from oneflow_dist.evaluation.items import Item, read_items
from oneflow_dist.evaluation.suite import Suite, TaskConfig
from tests.messages import names, refused


@pytest.fixture(scope="module")
def respondent(config: Config, tokenizer: Tokenizer, make_model) -> Respondent:  # type: ignore[no-untyped-def]
    return Respondent(make_model(config, noise=0.05).eval(), config, tokenizer)


@pytest.fixture(scope="module")
def groups(suite: Suite) -> list[Group]:
    return [group for name, task in suite.task.items() for group in list_groups(name, task, read_items(name, task))]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of answers but those of seconds."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".seconds." not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_group_is_the_same_documents_whoever_writes_it(groups: list[Group]) -> None:
    paint = [group for group in groups if group.task == "paint"]
    assert [len(group.documents) for group in paint] == [3, 3, 1]
    assert [number for group in paint for number, _, _ in group.documents] == [*range(7)]
    describe = [group for group in groups if group.task == "describe"]
    assert [repeat for group in describe for _, _, repeat in group.documents] == [0, 1] * 5


def test_the_order_of_groups_and_an_interruption_change_no_byte(
    respondent: Respondent, groups: list[Group], tmp_path: Path
) -> None:
    write_answers(respondent, groups, tmp_path / "one", 0, 1)
    for part, (rank, num_ranks) in ((groups[3:6], (0, 1)), (groups, (1, 3))):
        write_answers(respondent, part, tmp_path / "two", rank, num_ranks)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) > len(groups)


def test_what_a_killed_process_left_is_written_anew(
    respondent: Respondent, groups: list[Group], tmp_path: Path
) -> None:
    own = groups[:2]
    write_answers(respondent, own, tmp_path, 0, 1)
    before = contents(tmp_path)
    path = own[0].path(tmp_path)
    path.with_name(path.name + ".partial").write_bytes(path.read_bytes()[:10])
    path.unlink()
    write_answers(respondent, own, tmp_path, 0, 1)
    assert contents(tmp_path) == before


def test_answers_tell_how_they_came_about(respondent: Respondent, groups: list[Group], tmp_path: Path) -> None:
    count = [group for group in groups if group.task == "count"]
    write_answers(respondent, count, tmp_path, 0, 1)
    answers = read_answers(tmp_path / "count")
    assert len(answers) == 6
    for answer in answers:
        assert answer.steps > 0
        assert answer.rows >= answer.steps
        for part in answer.parts:
            assert all(1 <= step <= answer.steps for step in part.born)
            assert len(part.tokens) == (0 if part.image else len(part.born))
            assert not part.image or part.born[0] <= part.end <= answer.steps
    seconds = json.loads((tmp_path / "count" / "000000.seconds.json").read_text())
    assert seconds == sorted(seconds)
    assert len(seconds) == max(answer.steps for answer in answers[:2])


def test_a_choice_is_one_of_the_choices(respondent: Respondent, groups: list[Group], tmp_path: Path) -> None:
    write_answers(respondent, [group for group in groups if group.task == "choose"], tmp_path, 0, 1)
    assert {answer.text for answer in read_answers(tmp_path / "choose")} <= {"a handwritten one", "the digit two"}


def group_of(task: TaskConfig, item: Item) -> Group:
    return Group(task="t", config=task, number=0, documents=((0, item, 0),))


def test_a_choice_among_nothing_is_refused(respondent: Respondent, tmp_path: Path) -> None:
    task = TaskConfig(source="items", path="x", answer="bound", scores=("exact",), prompt="?")
    assert names(
        refused(write_group, respondent, group_of(task, Item(key="k", fields={})), tmp_path), "task.t", "item k"
    )


def test_a_prompt_that_leaves_no_room_is_refused(respondent: Respondent, tmp_path: Path) -> None:
    task = TaskConfig(source="items", path="x", scores=("captions",), prompt="{text}", sampling=("max_rows=8",))
    item = Item(key="k", fields={"text": "one two " * 20})
    message = refused(write_group, respondent, group_of(task, item), tmp_path)
    assert names(message, "task.t", "item k", "sampling.max_rows", 8)
