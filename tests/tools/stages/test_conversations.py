from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tools.digits.grammar import WORDS, load_split
from tools.stages.conversations import (
    PLACES,
    QUESTIONS,
    Files,
    count_from,
    count_row,
    describe,
    draw,
    lay,
    list_row,
    talk,
)
from tools.stages.pictures import SMALL, enlarge


def messages(files: Files) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files["json"])["messages"]
    return found


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_split("train")


def test_a_conversation_names_each_picture_once_and_where_it_stands() -> None:
    turns = [([b"first", b"second", "which?"], "this"), ("draw it", [b"third", " there"])]
    files = talk(turns, "be brief", kind="short")
    assert json.loads(files["json"])["kind"] == "short"
    assert messages(files) == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "0.png"},
                {"type": "image", "image": "1.png"},
                {"type": "text", "text": "which?"},
            ],
        },
        {"role": "assistant", "content": "this"},
        {"role": "user", "content": "draw it"},
        {
            "role": "assistant",
            "content": [{"type": "image", "image": "2.png"}, {"type": "text", "text": " there"}],
        },
    ]
    assert [files[f"{number}.png"] for number in range(3)] == [b"first", b"second", b"third"]


def test_a_document_names_its_pictures_where_they_stand() -> None:
    files = lay([b"first", " one", b"second"])
    assert json.loads(files["json"])["segments"] == [
        {"type": "image", "image": "0.png"},
        {"type": "text", "text": " one"},
        {"type": "image", "image": "1.png"},
    ]
    assert [files["0.png"], files["1.png"]] == [b"first", b"second"]


@pytest.fixture(scope="module")
def shown(digits: tuple[np.ndarray, np.ndarray]) -> Callable[[Files], list[int]]:
    """The digits of a row, told by its pictures."""
    digit_of = {enlarge(image, SMALL): int(label) for image, label in zip(*digits, strict=True)}
    return lambda files: [digit_of[data] for end, data in files.items() if end.endswith("png")]


def test_answers_about_rows_are_right(
    digits: tuple[np.ndarray, np.ndarray], shown: Callable[[Files], list[int]]
) -> None:
    rng, numbers = np.random.default_rng(0), set()
    for _ in range(300):
        files = count_row(*digits, rng, is_held_out=False)
        fields, row = json.loads(files["json"]), shown(files)
        talked = [message["content"] for message in fields["messages"] if message["role"] != "system"]
        numbers.add(len(talked) // 2)
        for asked, answer in zip(talked[::2], talked[1::2], strict=True):
            question = asked if isinstance(asked, str) else asked[0]["text"]
            last = question.split()[-1].strip("?")
            if question == "how many pictures are there?":
                assert answer == WORDS[len(row)]
            elif question.startswith("how many pictures show a "):
                assert answer == WORDS[row.count(WORDS.index(last))]
            else:
                assert question.startswith("which digit comes ")
                assert answer == f"a {WORDS[row[PLACES.index(last)]]}"
    assert numbers == {1, 2}


def test_a_held_out_row_has_one_question_and_says_of_which_kind(digits: tuple[np.ndarray, np.ndarray]) -> None:
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(300):
        fields = json.loads(count_row(*digits, rng, is_held_out=True)["json"])
        asked, answer = fields["messages"][-2:]
        assert len(fields["messages"]) <= 3
        assert (asked["role"], answer["role"]) == ("user", "assistant")
        kinds.add((fields["asks"], *asked["content"][0]["text"].split()[:2]))
    assert kinds == {("pictures", "how", "many"), ("digits", "how", "many"), ("place", "which", "digit")}
    assert {kind for kind, *_ in kinds} == set(QUESTIONS)


def test_a_listed_row_names_the_digit_at_each_place(
    digits: tuple[np.ndarray, np.ndarray], shown: Callable[[Files], list[int]]
) -> None:
    files = list_row(*digits, np.random.default_rng(4))
    *pictures, said = json.loads(files["json"])["segments"]
    assert all(entry["type"] == "image" for entry in pictures)
    named = [part.split() for part in said["text"].split(", ")]
    assert [(place, article) for place, article, _ in named] == [(place, "a") for place in PLACES[: len(pictures)]]
    assert [WORDS.index(digit) for *_, digit in named] == shown(files)


def test_captions_and_pictures_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    asked, caption = messages(describe(b"picture", "a red circle", rng))
    assert asked["content"][0] == {"type": "image", "image": "0.png"}
    assert caption["content"] == "a red circle"
    asked, drawn = messages(draw(b"picture", "a red circle", rng))
    assert asked["content"].endswith("a red circle")
    assert drawn["content"] == [{"type": "image", "image": "0.png"}]


def test_an_answer_that_counts_has_a_picture_after_each_word(digits: tuple[np.ndarray, np.ndarray]) -> None:
    asked, counted = messages(count_from(*digits, np.random.default_rng(0)))
    words = [part["text"].strip() for part in counted["content"][::2]]
    assert all(part["type"] == "image" for part in counted["content"][1::2])
    first, last = (WORDS.index(word) for word in (words[0], words[-1]))
    assert words == list(WORDS[first : last + 1])
    assert asked["content"] == f"count from {words[0]} to {words[-1]}"
