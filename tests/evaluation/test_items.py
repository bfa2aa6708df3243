from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.evaluation.items import Item, Picture, read_items
from oneflow_dist.evaluation.suite import Suite, TaskConfig
from tests.messages import names, refused
from tests.tars import write_tar
from tools.digits.grammar import load_split
from tools.shards import encode_png

PNG = encode_png(load_split("heldout")[0][0])


def lines_task(path: Path, **more: object) -> TaskConfig:
    return TaskConfig(source="items", path=str(path), scores=("captions",), **more)  # type: ignore[arg-type]


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_pair_of_shards_is_a_caption_with_its_picture(suite: Suite) -> None:
    items = read_items("paint", suite.task["paint"])
    assert len(items) == 7
    assert len({item.key for item in items}) == 7
    for item in items:
        assert item.fields["references"] == [item.fields["caption"]]
        assert item.fields["caption"].split()[-1]
        assert item.pictures[0].read().startswith(b"\x89PNG")


def test_own_prompts_are_items(suite: Suite) -> None:
    task = TaskConfig(source="prompts", prompts=("a", "b"), scores=("captions",))
    assert [(item.key, item.prompt) for item in read_items("x", task)] == [("0000", "a"), ("0001", "b")]


def test_the_last_answer_of_a_conversation_is_the_truth_and_all_before_it_the_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "what {is} it?"}]},
        {"role": "assistant", "content": "a seven"},
        {"role": "user", "content": "and this?"},
        {"role": "assistant", "content": "two"},
    ]
    write_tar(tmp_path / "talk.tar", {"7.0.png": PNG, "7.json": json.dumps({"messages": turns}).encode()})
    task = TaskConfig(source="conversations", path=f"{tmp_path}/talk.tar", scores=("exact",))
    (item,) = read_items("talk", task)
    assert item.prompt == "<|user|>{picture_0}{text_1}<|assistant|>{text_2}<|user|>{text_3}<|assistant|>"
    assert [item.fields[f"text_{n}"] for n in (1, 2, 3)] == ["what {is} it?", "a seven", "and this?"]
    assert item.fields["references"] == ["two"]
    assert [picture.read() for picture in item.pictures] == [PNG]


def test_a_conversation_that_ends_with_a_question_is_refused(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "why?"}]
    write_tar(tmp_path / "talk.tar", {"7.json": json.dumps({"messages": turns}).encode()})
    task = TaskConfig(source="conversations", path=f"{tmp_path}/talk.tar", scores=("exact",))
    assert names(refused(read_items, "talk", task), "task/talk/7")


def test_lines_have_keys_prompts_pictures_and_whatever_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    path = write_lines(tmp_path, {"key": "x", "prompt": "p", "pictures": ["a.png"], "scenes": ["s"]}, {"key": 1})
    first, second = read_items("t", lines_task(path))
    assert (first.key, first.prompt, first.fields) == ("x", "p", {"scenes": ["s"]})
    assert first.pictures[0].read() == PNG
    assert (second.key, second.prompt, second.fields, second.pictures) == ("1", "", {}, ())


def test_a_line_ends_at_a_line_end_alone(tmp_path: Path) -> None:
    path = write_lines(tmp_path, json.dumps({"key": "x", "caption": "a\u2028b\x85c"}, ensure_ascii=False))
    (item,) = read_items("t", lines_task(path))
    assert item.fields["caption"] == "a\u2028b\x85c"


def test_fields_choose_items_and_a_count_ends_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({"key": str(n), "split": "ab"[n % 2]} for n in range(6)))
    assert [item.key for item in read_items("t", lines_task(path, where={"split": "b"}, count=2))] == ["1", "3"]
    assert names(refused(read_items, "t", lines_task(path, where={"split": "c"})), "task.t", path)


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"prompt": "without key"}'])
def test_a_broken_line_is_told_by_its_number(line: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"key": "x"}, line)
    assert names(refused(read_items, "t", lines_task(path)), path, 2)


def test_missing_files_and_equal_keys_are_refused(tmp_path: Path) -> None:
    assert names(refused(read_items, "t", lines_task(tmp_path / "no.jsonl")), tmp_path / "no.jsonl")
    path = write_lines(tmp_path, {"key": "x", "pictures": ["no.png"]})
    assert names(refused(read_items, "t", lines_task(path)), tmp_path / "no.png")
    path = write_lines(tmp_path, {"key": "x"}, {"key": "x"})
    assert names(refused(read_items, "t", lines_task(path)), "task.t", 2, "x")


def test_an_items_checksum_is_of_all_that_it_says_and_shows() -> None:
    item = Item(key="k", fields={"a": 1}, pictures=(Picture("p", lambda: b"1"),), prompt="p")
    others = [
        replace(item, key="l"),
        replace(item, fields={"a": 2}),
        replace(item, prompt="q"),
        replace(item, pictures=(Picture("p", lambda: b"2"),)),
    ]
    assert len({item.sha256, *(other.sha256 for other in others)}) == 5
    assert replace(item, pictures=(Picture("elsewhere", lambda: b"1"),)).sha256 == item.sha256
