from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oneflow_dist.evaluation.items import Item, read_items
from oneflow_dist.evaluation.official_items import read_official
from oneflow_dist.evaluation.suite import TaskConfig
from tests.evaluation.benchmarks import IDS, captions, file_name, make_benchmarks, suite_at, write, write_lines
from tests.messages import naming, refused

OFFICIAL = {  # number of items, the first key, what its fields hold, its picture
    "table2/coco_pictures": (12, "42", {"image_id": 42, "caption": "A red square.", "references": captions(42)}, True),
    "table2/coco_captions": (3, "42", {"image_id": 42, "file_name": file_name(42), "split": "test"}, True),
    "table2/dpg": (3, "12", {"caption": "A long prompt called 12, with a café in it."}, False),
    "table2/geneval": (3, "00000", {"caption": "a photo of single_object", "tag": "single_object"}, False),
    "table2/wise": (6, "1", {"prompt_id": 1, "subcategory": "part 0"}, False),
    "table3/vqav2": (24, "42000", {"question_id": 42000, "image_id": 42, "answer_type": "other"}, True),
    "table3/okvqa": (24, "42000", {"question_id": 42000, "references": ["red"] * 8 + ["none"] * 2}, True),
    "table3/pope_random": (24, "1", {"question_id": 1, "label": "yes", "references": ["yes"]}, True),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_benchmarks(tmp_path)
    return tmp_path


def task_of(root: Path, name: str) -> TaskConfig:
    suite, _, task = name.partition("/")
    return suite_at(f"paper_{suite}", root).task[task]


def read(task: TaskConfig) -> list[Item]:
    return [*read_official(task)]


@pytest.mark.parametrize("name", OFFICIAL)
def test_items_have_the_ids_and_the_truth_of_their_benchmark(root: Path, name: str) -> None:
    number, key, fields, has_picture = OFFICIAL[name]
    items = read_items(name, task_of(root, name))
    assert (len(items), items[0].key) == (number, key)
    assert items[0].fields.items() >= fields.items()
    assert [picture.name for picture in items[0].pictures][:1] == ([file_name(42)] if has_picture else [])
    for picture in items[0].pictures:
        assert Image.open(io.BytesIO(picture.read())).size == (64, 64)


@pytest.mark.parametrize("name", OFFICIAL)
def test_keys_are_names_of_files_and_differ(root: Path, name: str) -> None:
    keys = [item.key for item in read_items(name, task_of(root, name))]
    assert len({*keys}) == len(keys)
    assert all(Path(key).name == key for key in keys)


@pytest.mark.parametrize("split", ["test", "val", "restval", "train"])
def test_a_split_of_karpathy_is_a_field(root: Path, split: str) -> None:
    task = replace(task_of(root, "table2/coco_captions"), where={"split": split})
    assert [item.fields["split"] for item in read_items("captions", task)] == [split] * 3


def test_pictures_of_flickr_have_the_ids_of_its_file(tmp_path: Path) -> None:
    rows = [{"filename": "1000092795.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": " Two men. "}]}]
    write(tmp_path / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": rows})
    (tmp_path / "1000092795.jpg").write_bytes(b"jpg")
    (item,) = read(captions_task(tmp_path / "dataset_flickr30k.json", tmp_path))
    assert (item.key, item.fields["references"], item.pictures[0].read()) == ("0", ["Two men."], b"jpg")


def captions_task(path: Path, pictures: str | Path = "") -> TaskConfig:
    return TaskConfig(source="coco_captions", path=str(path), pictures=str(pictures), scores=("captions",))


def test_each_picture_has_all_its_captions_in_the_order_of_the_file(root: Path) -> None:
    items = read(task_of(root, "table2/coco_pictures"))
    assert [item.fields["references"] for item in items] == [captions(image_id) for image_id in IDS]


def test_questions_without_annotations_have_no_truth(root: Path) -> None:
    task = task_of(root, "table3/vqav2")
    items = read(replace(task, path=task.path.partition(",")[0]))
    assert len(items) == 24
    assert all(item.fields.keys() == {"question_id", "image_id", "question"} for item in items)


@pytest.mark.parametrize(
    ("subset", "name"),
    [
        ("val2014", "COCO_val2014_000000000042.jpg"),
        ("test-dev2015", "COCO_test2015_000000000042.jpg"),
        ("val2017", "000000000042.jpg"),
    ],
)
def test_pictures_of_questions_are_found_by_both_names_of_coco(tmp_path: Path, subset: str, name: str) -> None:
    rows = [{"image_id": 42, "question_id": 1, "question": "What?"}]
    write(tmp_path / "questions.json", {"data_subtype": subset, "questions": rows})
    (tmp_path / name).write_bytes(b"jpg")
    path = str(tmp_path / "questions.json")
    (item,) = read(TaskConfig(source="vqa", path=path, pictures=str(tmp_path), scores=("vqa",)))
    assert item.pictures[0].read() == b"jpg"


@pytest.mark.parametrize("name", ["table2/coco_captions", "table3/vqav2", "table3/pope_random"])
def test_a_missing_picture_is_an_error_only_when_it_is_read(root: Path, name: str) -> None:
    (root / "coco/val2014" / file_name(42)).unlink()
    first, *_, last = read_items(name, task_of(root, name))
    with pytest.raises(ValueError, match=naming(file_name(42))):
        first.pictures[0].read()
    assert last.pictures[0].read()


def test_without_a_folder_of_pictures_items_have_none(root: Path) -> None:
    assert all(not item.pictures for item in read(replace(task_of(root, "table3/pope_random"), pictures="")))


def test_prompts_come_in_the_order_of_their_names_whenever_they_were_written(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(0, 1000, 7)]
    for name in sorted(names, key=lambda name: name[::-1]):
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    items = read(TaskConfig(source="dpg", path=str(tmp_path), scores=("alignment",)))
    assert [item.key for item in items] == names


def test_metadata_of_geneval_is_its_line_as_it_is(tmp_path: Path) -> None:
    line = '{"prompt":"a  photo\u2028of 1.50", "tag": "x", "include":[]}'
    (tmp_path / "m.jsonl").write_text(f"{line}\r\n{line}\n", encoding="utf-8")
    items = read(TaskConfig(source="geneval", path=str(tmp_path / "m.jsonl"), scores=("alignment",)))
    assert [(item.key, item.fields["metadata"]) for item in items] == [("00000", line), ("00001", line)]


def files_of(task: TaskConfig) -> list[Path]:
    """Those that a test may spoil, the last of them being a prompt where the benchmark is a folder."""
    paths = [Path(path) for path in task.path.split(",")]
    return sorted(paths[0].iterdir()) if paths[0].is_dir() else paths


@pytest.mark.parametrize("name", OFFICIAL)
def test_half_a_file_is_an_error_that_names_it(root: Path, name: str) -> None:
    task = task_of(root, name)
    for path in files_of(task):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if task.source != "dpg" else b"\n")
        assert str(path) in refused(read, task).partition(": ")[0]
        path.write_bytes(whole)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_file_is_an_error_that_names_it(root: Path, name: str) -> None:
    task = task_of(root, name)
    missing = str(root / "nowhere")
    assert refused(read, replace(task, path=missing)).startswith(f"{missing}: ")


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "table2/dpg"])
@pytest.mark.parametrize("content", [{"images": [{}]}, [[]], ["text"], 3, {"questions": 1}, None])
def test_the_file_of_another_benchmark_is_an_error_of_one_line(root: Path, name: str, content: Any) -> None:
    task = task_of(root, name)
    write_lines(root / "other.json", [content])
    message = refused(read, replace(task, path=str(root / "other.json")))
    assert message.startswith(f"{root / 'other.json'}")
    assert "\n" not in message


def test_questions_and_annotations_of_different_sets_do_not_go_together(root: Path) -> None:
    task = task_of(root, "table3/vqav2")
    questions = Path(task.path.partition(",")[0])
    table = json.loads(questions.read_text())
    write(questions, {**table, "questions": table["questions"][1:]})
    with pytest.raises(ValueError, match=naming(1, 42000)):
        read(task)
    with pytest.raises(ValueError, match=naming(3)):
        read(replace(task, path=f"{task.path},{questions}"))


@pytest.mark.parametrize(
    ("change", "image_id"), [({"annotations": [{"image_id": 5, "caption": "?"}]}, 5), ({"annotations": []}, 42)]
)
def test_captions_without_a_picture_and_pictures_without_a_caption_are_refused(
    root: Path, change: dict[str, Any], image_id: int
) -> None:
    path = root / "coco/annotations/captions_val2014.json"
    write(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(ValueError, match=naming(path, image_id)):
        read(captions_task(path))


def test_a_label_that_is_neither_yes_nor_no_is_refused(tmp_path: Path) -> None:
    rows = [
        {"question_id": n, "image": "a.jpg", "text": "?", "label": label} for n, label in enumerate(["no", "maybe"])
    ]
    write_lines(tmp_path / "pope.json", rows)
    with pytest.raises(ValueError, match=naming("pope.json", 2, "maybe")):
        read(TaskConfig(source="pope", path=str(tmp_path / "pope.json"), scores=("yes_no",)))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pope.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=naming("pope.json")):
        read(TaskConfig(source="pope", path=str(tmp_path / "pope.json"), scores=("yes_no",)))
