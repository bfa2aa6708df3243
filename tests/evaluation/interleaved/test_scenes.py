from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oneflow_dist.evaluation.interleaved.scenes import (
    COLOURS,
    COUNTING,
    COUNTS,
    DIGITS,
    LEADS,
    NOUNS,
    STORIES,
    counts_up,
    is_told,
    read_digit,
    read_scene,
    say_scene,
)

LABELS = [f"{count} {colour} {noun}" for count in COUNTS for colour in COLOURS for noun in NOUNS]
WORDS = (*LEADS, *COUNTS, *COLOURS, *NOUNS, *NOUNS.values(), "four", "yellow", "cats", "finally", "")


def test_every_text_of_a_scene_is_read_back_as_its_label() -> None:
    texts = {say_scene(lead, label): label for lead in LEADS for label in LABELS}
    assert len(texts) == 3 * 90
    assert {text: read_scene(f" {text}\n") for text in texts} == texts


@given(label=st.sampled_from(LABELS), lead=st.sampled_from(LEADS), place=st.integers(0, 3), word=st.sampled_from(WORDS))
def test_a_text_with_another_word_is_not_read_as_before(label: str, lead: str, place: int, word: str) -> None:
    words = say_scene(lead, label).split()
    assume(words[place] != word)
    words[place] = word
    read = read_scene(" ".join(words))
    if place == 0:
        assert read == (label if word in LEADS else None)
    else:
        assert read != label
        assert read is None or say_scene(lead, read).split() == words


@pytest.mark.parametrize(
    "text",
    [
        *("", "first", "first one red mice", "then two blue mouse", "First one red fish", "first one red fish."),
        *("one red fish", "first one red fish then two blue mice", "first  one red fish", "first one fish red"),
    ],
)
def test_what_is_no_scene_says_nothing(text: str) -> None:
    assert read_scene(text) is None


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert read_scene(text) in (None, *LABELS)
    assert read_digit(text) in (None, *DIGITS)


def test_a_story_is_told_when_its_scenes_come_in_their_order() -> None:
    fields = {"scenes": ["one red fish", "two blue mouse"]}
    assert is_told(("one red fish", "two blue mouse"), fields)
    assert not any(is_told(told, fields) for told in ([], ["one red fish"], ["two blue mouse", "one red fish"]))


@pytest.mark.parametrize(
    ("words", "longest", "is_right"),
    [
        ("three", 5, True),
        ("seven eight nine", 5, True),
        ("", 5, False),
        ("one two three four five six", 5, False),
        ("one two three four five", 5, True),
        ("one three", 5, False),
        ("two one", 5, False),
        ("nine zero", 5, False),
        ("nine zero one", 20, True),
        ("zero nine", 20, False),
    ],
)
def test_digits_count_up_by_one_and_over_nine_only_where_documents_are_long(
    words: str, longest: int, is_right: bool
) -> None:
    assert counts_up(words.split(), {"longest": longest}) is is_right


def test_the_words_of_digits_are_read_alone() -> None:
    assert [read_digit(text) for text in ("one", " nine\n", "one two", "One", "ten")] == [
        "one",
        "nine",
        None,
        None,
        None,
    ]


def test_a_label_of_a_story_has_a_part_for_each_attribute() -> None:
    assert {len(label.split()) for label in LABELS} == {len(STORIES.attributes)}
    assert COUNTING.attributes == ()
