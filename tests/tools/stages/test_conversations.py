from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from tools.digits.grammar import WORDS, load_split
from tools.stages.conversations import PLACES, PLURALS, Files, count_from, count_row, describe, draw, talk


def messages(files: Files) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files["json"])["messages"]
    return found


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_split("train")


def test_a_conversation_names_each_picture_once_and_where_it_stands() -> None:
    files = talk([("which?", "this"), ("draw it", [b"third", " there"])], [b"first", b"second"], "be brief")
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


def test_answers_about_rows_are_right(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """All answers about one row agree with what it holds, as far as they say it."""
    rng = np.random.default_rng(0)
    kinds, numbers = set(), set()
    for _ in range(400):
        files = count_row(*digits, rng, is_held_out=False)
        talked = [message for message in messages(files) if message["role"] != "system"]
        length = len(files) - 1
        turns = {}
        for user, assistant in zip(talked[::2], talked[1::2], strict=True):
            asked = user["content"]
            turns[asked if isinstance(asked, str) else asked[-1]["text"]] = assistant["content"]
        numbers.add(len(turns))
        listed = turns.get("which digits are these?", "").split()
        for question, answer in turns.items():
            kinds.add(re.sub("|".join([*PLURALS, *PLACES]), "", question))
            if question == "how many pictures are there?":
                assert answer == WORDS[length]
            elif listed and question.startswith("how many"):
                assert answer == WORDS[listed.count(WORDS[PLURALS.index(question.split()[2])])]
            elif listed and question.startswith("which digit comes"):
                assert answer == listed[PLACES.index(question.split()[-1].strip("?"))]
        assert len(listed) in (0, length)
    assert len(kinds) == 4
    assert numbers == {1, 2}


def test_a_held_out_row_has_one_question_whose_answer_is_a_word(digits: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        talked = messages(count_row(*digits, rng, is_held_out=True))
        assert [message["role"] for message in talked][-2:] == ["user", "assistant"]
        assert len(talked) <= 3
        assert talked[-1]["content"] in WORDS


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
