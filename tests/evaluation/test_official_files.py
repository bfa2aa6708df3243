from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.answers import Answer
from oneflow_dist.evaluation.items import Item, read_items
from oneflow_dist.evaluation.official_files import write_official
from oneflow_dist.evaluation.suite import TaskConfig
from tests.evaluation.benchmarks import IDS, make_benchmarks, picture_answers, suite_at, text_answers
from tests.messages import naming, refused

TEXTS = ("table2/coco_captions", "table3/vqav2", "table3/pope_popular")
PICTURES = ("table2/dpg", "table2/geneval", "table2/wise")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_benchmarks(tmp_path)
    return tmp_path


def asked(root: Path, name: str) -> tuple[TaskConfig, list[Item], list[Answer]]:
    suite, _, task_name = name.partition("/")
    task = suite_at(f"paper_{suite}", root).task[task_name]
    items = read_items(name, task)
    return task, items, text_answers(items) if name in TEXTS else picture_answers(items, root, task.repeats)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(files: Sequence[Path]) -> list[tuple[str, str, bytes]]:
    return [(path.parent.name, path.name, path.read_bytes()) for path in files]


def test_captions_are_results_of_coco(root: Path) -> None:
    (path,) = write_official(*asked(root, "table2/coco_captions"), root / "out")
    ids = [image_id for number, image_id in enumerate(IDS) if number % 4 == 0]
    assert path == root / "out/results.json"
    assert read(path) == [{"image_id": image_id, "caption": f"said {image_id}"} for image_id in ids]


def test_answers_are_results_of_vqa_for_all_questions_of_the_set(root: Path) -> None:
    task, items, answers = asked(root, "table3/vqav2")
    (path,) = write_official(task, items, answers, root / "out")
    questions = read(Path(task.path.partition(",")[0]))["questions"]
    ids = [question["question_id"] for question in questions]
    assert read(path) == [{"question_id": number, "answer": f"said {number}"} for number in ids]


def test_answers_of_pope_lie_beside_its_labels_line_for_line(root: Path) -> None:
    task, items, answers = asked(root, "table3/pope_popular")
    said, labels = write_official(task, items, answers[::-1], root / "out")
    official = read_lines(Path(task.path))
    assert read_lines(labels) == official
    expected = [{"question": row["text"], "answer": f"said {row['question_id']}"} for row in official]
    assert read_lines(said) == expected


def test_labels_of_pope_are_those_of_the_questions_that_were_asked(root: Path) -> None:
    task, items, answers = asked(root, "table3/pope_popular")
    said, labels = write_official(task, items[5:7], answers[5:7], root / "out")
    assert [row["question_id"] for row in read_lines(labels)] == [6, 7]
    assert len(read_lines(said)) == 2


def test_dpg_cuts_its_four_pictures_out_of_one(root: Path) -> None:
    task, items, answers = asked(root, "table2/dpg")
    files = write_official(task, items, answers, root / "out")
    assert [path.name for path in files] == [f"{Path(prompt).stem}.png" for prompt in sorted(Path(task.path).iterdir())]
    side = 8
    boxes = [(0, 0), (side, 0), (0, side), (side, side)]  # in the order of --pic-num
    for place, path in enumerate(files):
        with Image.open(path) as grid:
            assert grid.size == (2 * side, 2 * side)
            for number, (left, top) in enumerate(boxes):
                cut = np.asarray(grid.crop((left, top, left + side, top + side)))
                assert (cut == (10 * place, 50 * number, 7)).all()


def test_one_answer_with_four_pictures_is_a_grid_of_dpg_as_well(root: Path) -> None:
    task, items, answers = asked(root, "table2/dpg")
    whole = [replace(own[0], parts=tuple(part for answer in own for part in answer.parts)) for own in by_four(answers)]
    first = contents(write_official(task, items, answers, root / "four/out"))
    assert contents(write_official(task, items, whole, root / "one/out")) == first


def by_four(answers: list[Answer]) -> list[list[Answer]]:
    return [answers[first : first + 4] for first in range(0, len(answers), 4)]


def test_geneval_finds_four_samples_beside_the_line_of_their_prompt(root: Path) -> None:
    task, items, answers = asked(root, "table2/geneval")
    files = write_official(task, items, answers, root / "out")
    lines = Path(task.path).read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(files) == 5 * len(lines)
    for number, (line, own) in enumerate(zip(lines, by_four(answers), strict=True)):
        folder = root / f"out/{number:05d}"
        assert (folder / "metadata.jsonl").read_text(encoding="utf-8") == line
        for sample, answer in enumerate(own):
            copied = (folder / f"samples/{sample:05d}.png").read_bytes()
            assert copied == (answer.folder / answer.images[0]).read_bytes()


def test_pictures_of_wise_are_called_by_their_prompts(root: Path) -> None:
    task, items, answers = asked(root, "table2/wise")
    files = write_official(task, items, answers, root / "out")
    assert [path.name for path in files] == ["1.png", "2.png", "401.png", "402.png", "701.png", "702.png"]
    assert [path.read_bytes() for path in files] == [(a.folder / a.images[0]).read_bytes() for a in answers]


def test_pictures_of_captions_stay_where_they_are(root: Path) -> None:
    assert write_official(*asked(root, "table2/coco_pictures"), root / "out") == []
    assert not (root / "out").exists()


@pytest.mark.parametrize("name", [*TEXTS, *PICTURES])
def test_the_same_answers_in_any_order_are_the_same_bytes(root: Path, name: str) -> None:
    task, items, answers = asked(root, name)
    first = contents(write_official(task, items, answers, root / "one/out"))
    assert contents(write_official(task, items, answers[::-1], root / "again/out")) == first


@pytest.mark.parametrize("name", PICTURES)
def test_an_item_that_comes_with_each_of_its_answers_is_one(root: Path, name: str) -> None:
    task, items, answers = asked(root, name)
    files = write_official(task, items, answers, root / "out")
    again = write_official(task, [item for item in items for _ in range(task.repeats)], answers, root / "again")
    assert [path.relative_to(root / "again") for path in again] == [path.relative_to(root / "out") for path in files]


@pytest.mark.parametrize("name", [*TEXTS, *PICTURES])
def test_every_item_has_an_answer_and_every_answer_an_item(root: Path, name: str) -> None:
    task, items, answers = asked(root, name)
    last = items[-1].key
    with pytest.raises(ValueError, match=naming(last)):
        write_official(task, items, [answer for answer in answers if answer.key != last], root / "out")
    with pytest.raises(ValueError, match=naming("nobody")):
        write_official(task, items, [*answers, replace(answers[0], key="nobody")], root / "out")
    assert not (root / "out").exists()


@pytest.mark.parametrize(("name", "number", "wanted"), [("dpg", 3, 4), ("geneval", 0, 1), ("wise", 0, 1)])
def test_the_wrong_number_of_pictures_is_refused(root: Path, name: str, number: int, wanted: int) -> None:
    task, items, answers = asked(root, f"table2/{name}")
    first = [answer for answer in answers if answer.key == items[0].key]
    fewer = [*first[:number], *(replace(answer, parts=()) for answer in first[number:]), *answers[len(first) :]]
    message = refused(write_official, task, items, fewer, root / "out")
    assert message.startswith(f"item {items[0].key}: {number} pictures")
    assert f"repeats = {wanted}" in message


def test_a_grid_of_unlike_pictures_is_refused(root: Path) -> None:
    task, items, answers = asked(root, "table2/dpg")
    Image.new("RGB", (8, 9)).save(answers[1].folder / answers[1].images[0])
    with pytest.raises(ValueError, match=naming(items[0].key, "8x8", "8x9")):
        write_official(task, items, answers, root / "out")


@pytest.mark.parametrize("name", PICTURES)
def test_a_lost_picture_is_an_error_that_names_it(root: Path, name: str) -> None:
    task, items, answers = asked(root, name)
    (answers[0].folder / answers[0].images[0]).unlink()
    with pytest.raises(ValueError, match=naming(answers[0].images[0])):
        write_official(task, items, answers, root / "out")
