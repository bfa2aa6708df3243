from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.prepare.annotations import coco_files, llava_files, read_coco, read_llava
from tests.messages import names, refused
from tests.prepare.making import PNG, captions_of, problems_of, shown, write_folder

COCO = {
    "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}, {"id": 3, "file_name": "gone.jpg"}],
    "annotations": [
        {"image_id": 1, "id": 10, "caption": "one"},
        {"image_id": 2, "id": 11, "caption": "two\n"},
        {"image_id": 1, "id": 12, "caption": "three"},
        {"image_id": 3, "id": 13, "caption": "four"},
    ],
}
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An owl."}]


@pytest.mark.parametrize("images", ["train2017", "images/train2017", "images", "", "coco/deep"])
def test_coco_has_its_pictures_in_a_folder_beside(tmp_path: Path, images: str) -> None:
    paths = [f"{images}/{name}.jpg".lstrip("/") for name in "ab"]
    folder = write_folder(tmp_path, {"annotations/captions_train2017.json": COCO, **dict.fromkeys(paths, PNG)})
    source = read_coco(folder)
    assert captions_of(source) == {paths[0]: ["one", "three"], paths[1]: ["two"]}
    assert [item.fields for item in source.items][-1] == {"id": 2, "split": "train"}
    assert names(problems_of(source)["annotations/captions_train2017.json, image 3"], "'gone.jpg'")
    assert source.unread == {}


def test_the_captions_are_taken_of_several_annotations(tmp_path: Path) -> None:
    instances = {"images": COCO["images"], "annotations": [{"image_id": 1, "bbox": []}]}
    files: dict[str, Any] = {"a.jpg": PNG, "annotations/instances_val2017.json": instances}
    folder = write_folder(tmp_path / "both", {**files, "annotations/captions_val2017.json": COCO})
    assert coco_files(folder) == ["annotations/captions_val2017.json"]
    assert read_coco(folder).unread == {"json": 1}
    assert names(refused(read_coco, write_folder(tmp_path / "one", files)), "annotations/instances_val2017.json", 1)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [3], "annotations": []}'])
def test_broken_annotations_are_refused(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path, {"a.jpg": PNG, "captions_x.json": content})
    assert names(refused(read_coco, folder), "captions_x.json")


def test_an_image_without_a_name_is_a_problem(tmp_path: Path) -> None:
    value = {**COCO, "images": [{"id": 1}, {"id": 2, "file_name": "../b.jpg"}]}
    source = read_coco(write_folder(tmp_path, {"a.jpg": PNG, "captions_x.json": value}))
    assert list(problems_of(source)) == ["captions_x.json, image 1", "captions_x.json, image 2"]


@pytest.mark.parametrize("image", ["owls/a.jpg", "./owls/a.jpg", "a.jpg", ["owls/a.jpg"]])
def test_llava_names_its_pictures_from_a_root(tmp_path: Path, image: Any) -> None:
    entries = [{"id": "x7", "image": image, "conversations": TURNS, "n": [1]}]
    source = read_llava(write_folder(tmp_path, {"chat.json": entries, "images/owls/a.jpg": PNG}))
    (item,) = source.items
    assert (item.name, item.fields) == ("chat.json:1", {"id": "x7"})
    assert [(role, shown(parts)) for role, parts in item.turns] == [
        ("user", ["<images/owls/a.jpg>", "What is it?"]),
        ("assistant", ["An owl."]),
    ]
    assert source.unread == {}


def test_llava_may_be_lines(tmp_path: Path) -> None:
    lines = f"{json.dumps({'image': 'a.jpg', 'conversations': TURNS})}\n\n"
    folder = write_folder(tmp_path, {"chat.jsonl": lines * 2, "a.jpg": PNG})
    assert llava_files(folder) == ["chat.jsonl"]
    assert [item.name for item in read_llava(folder).items] == ["chat.jsonl:1", "chat.jsonl:2"]


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {"id": "1"},
        {"image": "gone.jpg", "conversations": TURNS},
        {"image": "../../a.jpg", "conversations": TURNS},
        {"image": 3, "conversations": TURNS},
        {"image": ["a.jpg", "a.jpg"], "conversations": TURNS},
        {"image": "a.jpg", "conversations": TURNS[:1]},
        {"image": "a.jpg", "conversations": [{"from": "cat", "value": "<image>"}]},
        {"image": "a.jpg", "conversations": "x"},
    ],
)
def test_what_is_wrong_with_a_conversation_is_its_problem(tmp_path: Path, entry: Any) -> None:
    good = {"image": "a.jpg", "conversations": TURNS}
    source = read_llava(write_folder(tmp_path, {"chat.json": [good, entry], "a.jpg": PNG}))
    assert list(problems_of(source)) == ["chat.json:2"]


def test_json_beside_a_picture_is_no_annotation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.png": PNG, "a.json": [{"conversations": []}], "b.json": {"x": 1}})
    assert (coco_files(folder), llava_files(folder)) == ([], [])
    assert "conversations" in refused(read_llava, folder)
    assert "captions_" in refused(read_coco, folder)
