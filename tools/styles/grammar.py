"""The world of styles: digits drawn in many ways, what captions tell of them, and how many of their statements hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tools.digits.grammar import WORDS

GREY = 100  # of a ground that is not black


class Style(NamedTuple):
    """What there is to tell of a picture, or what a caption tells: a word each, "" for nothing.

    A black ground without an edge is what one expects, so nobody has a word for it.
    """

    tone: str = ""
    digit: str = ""
    ground: str = ""
    edge: str = ""


NAMES = Style(("dim", "bright"), WORDS, ("grey",), ("left", "right"))  # type: ignore[arg-type] # of each: all its words
CHANCES = (0.5, 0.8, 0.5, 0.5)  # that a caption tells of it, where there is a word
STATEMENTS = frozenset(word for words in NAMES for word in words)


def draw_style(digit: int, rng: np.random.Generator) -> Style:
    """A style in which a digit may be drawn; all are equally frequent."""
    tone, ground, edge = (str(rng.choice(words)) for words in (NAMES.tone, ("", *NAMES.ground), ("", *NAMES.edge)))
    return Style(tone, WORDS[digit], ground, edge)


def draw_picture(image: np.ndarray, style: Style) -> np.ndarray:
    """Pixels [8, 8] uint8 of a bright digit on black in a style: half as bright, on grey, with a white edge."""
    picture = image * (0.5 if style.tone == "dim" else 1.0)
    if style.ground:
        picture = GREY + picture * (1.0 - GREY / 255.0)
    if style.edge:
        picture[:, 0 if style.edge == "left" else -1] = 255.0
    return picture.astype(np.uint8)


def choose(style: Style, rng: np.random.Generator) -> Style:
    """What one caption of a picture tells: each of its words has its chance, whatever the others do."""
    return Style(*(word if rng.random() < chance else "" for word, chance in zip(style, CHANCES, strict=True)))


def write_caption(told: Style) -> str:
    """The sentence that tells this, as "a dim seven on grey with a left edge", or "a digit"."""
    ground, edge = told.ground and f"on {told.ground}", told.edge and f"with a {told.edge} edge"
    return " ".join(part for part in ("a", told.tone, told.digit or "digit", ground, edge) if part)


def read_caption(text: str) -> Style | None:
    """What a sentence tells; None if it is none of the grammar's."""
    words = text.split()
    told = Style(*(next((word for word in words if word in names), "") for names in NAMES))
    return told if write_caption(told) == text else None


def judge(text: str, style: Style) -> tuple[int, int]:
    """How many statements of a text, a sentence or not, are right of a picture, and how many wrong; repeats are one."""
    stated = STATEMENTS & set(text.split())
    right = len(stated & set(style))
    return right, len(stated) - right
