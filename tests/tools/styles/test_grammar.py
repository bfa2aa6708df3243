from __future__ import annotations

import itertools

import numpy as np
import pytest

from tools.digits.grammar import load_split
from tools.styles.grammar import (
    CHANCES,
    NAMES,
    STATEMENTS,
    Style,
    choose,
    draw_picture,
    draw_style,
    judge,
    read_caption,
    write_caption,
)

ALL_TOLD = [Style(*told) for told in itertools.product(*(("", *words) for words in NAMES))]
SEEN = Style("dim", "seven", "grey", "left")


def test_what_is_written_is_read_again() -> None:
    assert len(ALL_TOLD) == 3 * 11 * 2 * 3
    assert len({write_caption(told) for told in ALL_TOLD}) == len(ALL_TOLD)
    for told in ALL_TOLD:
        assert read_caption(write_caption(told)) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "dim seven",
        "a seven dim",
        "a dim bright seven",
        "a dim",
        "a seven on",
        "a seven with a edge",
        "a seven with left edge",
        "a seven with a left edge on grey",
        "a seven seven",
        "a  seven",
        "a seven ",
        "a digit seven",
        "a Seven",
    ],
)
def test_other_texts_are_no_sentences(text: str) -> None:
    assert read_caption(text) is None


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("a digit", 0, 0),
        ("a seven", 1, 0),
        ("a dim seven on grey with a left edge", 4, 0),
        ("a bright seven on grey with a right edge", 2, 2),
        ("a one", 0, 1),
        ("a dim bright seven", 2, 1),  # a contradiction is wrong once
        ("seven seven a", 1, 0),  # repeated, it is one statement
        ("on with a edge", 0, 0),
        ("", 0, 0),
    ],
)
def test_statements_are_counted_in_sentences_and_others(text: str, right: int, wrong: int) -> None:
    assert judge(text, SEEN) == (right, wrong)


def test_what_has_no_word_is_wrong_to_tell() -> None:
    assert judge("a seven on grey with a left edge", Style("dim", "seven")) == (1, 2)


def test_a_caption_tells_each_word_with_its_chance_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for style in (SEEN, Style("bright", "one")):
        told = np.array([choose(style, rng) for _ in range(4000)])
        assert all(set(column) <= {word, ""} for column, word in zip(told.T, style, strict=True))
        expected = [chance if word else 0.0 for chance, word in zip(CHANCES, style, strict=True)]
        np.testing.assert_allclose((told != "").mean(0), expected, atol=0.03)


def test_styles_are_equally_frequent() -> None:
    rng = np.random.default_rng(0)
    styles = [draw_style(7, rng) for _ in range(6000)]
    counts = np.array([styles.count(style) for style in set(styles)])
    assert len(counts) == 2 * 2 * 3
    assert counts.min() > 400
    assert {word for style in styles for word in style} <= STATEMENTS | {""}


def test_pictures_look_like_their_styles() -> None:
    image = load_split("train")[0][0]
    assert (draw_picture(image, Style("bright")) == image).all()
    assert (draw_picture(image, Style("dim")) == image // 2).all()
    on_grey = draw_picture(image, Style("bright", ground="grey"))
    assert ((on_grey == 100) == (image == 0)).all()
    assert ((on_grey == 255) == (image == 255)).all()
    seen = draw_picture(image, SEEN)
    assert (seen[:, 0] == 255).all()
    assert seen[:, 1:].max() < 200  # half as bright, on grey
    assert (draw_picture(image, Style("dim", "seven", "grey"))[:, 1:] == seen[:, 1:]).all()
    assert (draw_picture(image, Style("bright", edge="right"))[:, -1] == 255).all()
