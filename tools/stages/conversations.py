"""Conversations about pictures of digits: they are counted, read, described and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tools.digits.grammar import WORDS, count_up
from tools.stages.pictures import SIDE, SMALL, enlarge

Files = dict[str, bytes | str]  # of a sample, by extension
Parts = Sequence[str | bytes]  # texts and pictures in reading order
Said = str | Parts
PLACES = ("first", "second", "third", "fourth")  # in a row of digits
LENGTHS = (0.4, 0.3, 0.2, 0.1)  # how likely rows of one, two, three, four are: counting begins with short ones
QUESTIONS = {"pictures": 0.1, "digits": 0.7, "place": 0.2}  # what is counted or asked of a row, and how likely
PRESENT = 0.5  # of the digits that are counted are there for certain
SYSTEM = "answer in one word."
SEVERAL = 0.05  # of the rows have two questions
DESCRIBE = ("describe the picture", "what does this picture show?")
DRAW = ("draw {}", "paint a picture: {}")


def lay(parts: Parts) -> Files:
    """A document of texts and pictures, in reading order, as a sample."""
    files: Files = {}
    segments = _name(parts, files)
    return {**files, "json": json.dumps({"segments": segments})}


def talk(turns: Sequence[tuple[Said, Said]], system: str = "", **fields: str) -> Files:
    """A conversation as a sample: questions with their answers, each text or a list of texts and pictures.

    Args:
        fields: more of the .json, for filters.
    """
    files: Files = {}
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        for role, said in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": said if isinstance(said, str) else _name(said, files)})
    return {**files, "json": json.dumps({"messages": messages, **fields})}


def _name(parts: Parts, files: Files) -> list[dict[str, str]]:
    """Texts and pictures as entries of JSON; the pictures get names in `files`."""
    entries = []
    for part in parts:
        if isinstance(part, str):
            entries.append({"type": "text", "text": part})
        else:
            name = f"{len(files)}.png"
            files[name] = part
            entries.append({"type": "image", "image": name})
    return entries


def draw_row(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[list[bytes], np.ndarray]:
    """Pictures of one to four digits, and the digits: of three kinds, so that some stand there several times."""
    length = 1 + int(rng.choice(len(LENGTHS), p=LENGTHS))
    kinds = rng.choice(10, size=3, replace=False)
    chosen = [int(rng.choice(np.flatnonzero(labels == digit))) for digit in rng.choice(kinds, size=length)]
    return [enlarge(images[index], SMALL) for index in chosen], labels[chosen]


def list_row(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Files:
    """A row of digits, and which digit stands at each place."""
    pictures, digits = draw_row(images, labels, rng)
    said = [f"{place} a {WORDS[digit]}" for place, digit in zip(PLACES, digits, strict=False)]
    return lay([*pictures, ", ".join(said)])


def count_row(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, is_held_out: bool) -> Files:
    """A row of digits after one or two questions about it; of a held-out row one question.

    A question stands before the pictures, so that a picture's distance from it is the same in every row.
    """
    pictures, digits = draw_row(images, labels, rng)
    place = int(rng.integers(len(digits)))
    kind = int(rng.choice(digits)) if rng.random() < PRESENT else int(rng.integers(10))
    questions: dict[str, tuple[str, str]] = {
        "pictures": ("how many pictures are there?", WORDS[len(digits)]),
        "digits": (f"how many pictures show a {WORDS[kind]}?", WORDS[int((digits == kind).sum())]),
        "place": (f"which digit comes {PLACES[place]}?", f"a {WORDS[digits[place]]}"),
    }
    several = 1 if is_held_out or rng.random() > SEVERAL else 2
    first, *more = rng.choice(list(QUESTIONS), size=several, replace=False, p=list(QUESTIONS.values()))
    question, answer = questions[first]
    asked: Parts = [question, *pictures]
    return talk(
        [(asked, answer), *(questions[also] for also in more)], SYSTEM if rng.random() < 0.1 else "", asks=str(first)
    )


def describe(picture: bytes, caption: str, rng: np.random.Generator) -> Files:
    """A caption on request."""
    return talk([([picture, DESCRIBE[rng.integers(len(DESCRIBE))]], caption)])


def draw(picture: bytes, caption: str, rng: np.random.Generator) -> Files:
    """A picture on request."""
    return talk([(DRAW[rng.integers(len(DRAW))].format(caption), [picture])])


def count_pictures(digits: Iterable[int], images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Parts:
    """Each digit in a word, and then in a picture of it."""
    chosen = [(f" {WORDS[digit]}", rng.choice(np.flatnonzero(labels == digit))) for digit in digits]
    return [part for word, index in chosen for part in (word, enlarge(images[index], SIDE))]


def count_from(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Files:
    """Words and pictures in one answer: "count from two to four"."""
    digits = count_up(rng)
    asked = f"count from {WORDS[digits[0]]} to {WORDS[digits[-1]]}"
    return talk([(asked, count_pictures(digits, images, labels, rng))])
