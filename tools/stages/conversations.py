"""Conversations about pictures of digits: they are counted, read, described and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.digits.grammar import WORDS, count_up
from tools.stages.pictures import SIDE, SMALL, enlarge

Files = dict[str, bytes | str]  # of a sample, by extension
MAX_ROW = 6  # digits in a row
PLURALS = tuple(f"{word}{'es' if word == 'six' else 's'}" for word in WORDS)
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
SYSTEM = "answer in one word."
SEVERAL = 0.2  # of the rows have two questions
DESCRIBE = ("describe the picture", "what does this picture show?")
DRAW = ("draw {}", "paint a picture: {}")


def talk(turns: Sequence[tuple[str, str | list[str | bytes]]], given: Sequence[bytes] = (), system: str = "") -> Files:
    """A conversation as a sample.

    Args:
        turns: questions with their answers; an answer is text, or a list of texts and pictures.
        given: pictures that stand before the first question.
    """
    files: Files = {}

    def content(parts: Sequence[str | bytes]) -> list[dict[str, str]]:
        entries = []
        for part in parts:
            if isinstance(part, str):
                entries.append({"type": "text", "text": part})
            else:
                name = f"{len(files)}.png"
                files[name] = part
                entries.append({"type": "image", "image": name})
        return entries

    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for number, (question, answer) in enumerate(turns):
        asked = content([*given, question]) if number == 0 and given else question
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer if isinstance(answer, str) else content(answer)})
    return {**files, "json": json.dumps({"messages": messages})}


def count_row(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, is_held_out: bool) -> Files:
    """A row of one to six digits and one or two questions about it; of a held-out row one, whose answer is a word.

    The digits of a row come from three kinds, so that some stand there several times.
    """
    length = int(rng.integers(1, MAX_ROW + 1))
    kinds = rng.choice(10, size=3, replace=False)
    chosen = [int(rng.choice(np.flatnonzero(labels == digit))) for digit in rng.choice(kinds, size=length)]
    digits = labels[chosen]
    place, kind = int(rng.integers(length)), int(rng.choice(kinds))
    questions = [
        ("how many pictures are there?", WORDS[length]),
        (f"how many {PLURALS[kind]} are there?", WORDS[int((digits == kind).sum())]),
        (f"which digit comes {PLACES[place]}?", WORDS[int(digits[place])]),
        ("which digits are these?", " ".join(WORDS[digit] for digit in digits)),
    ]
    several = 1 if is_held_out or rng.random() > SEVERAL else 2
    asked = [questions[at] for at in rng.permutation(3 if is_held_out else 4)[:several]]
    system = SYSTEM if rng.random() < 0.25 else ""
    return talk(asked, [enlarge(images[index], SMALL) for index in chosen], system)


def describe(picture: bytes, caption: str, rng: np.random.Generator) -> Files:
    """A caption on request."""
    return talk([(DESCRIBE[rng.integers(len(DESCRIBE))], caption)], [picture])


def draw(picture: bytes, caption: str, rng: np.random.Generator) -> Files:
    """A picture on request."""
    return talk([(DRAW[rng.integers(len(DRAW))].format(caption), [picture])])


def count_from(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Files:
    """Words and pictures in one answer: "count from two to four"."""
    parts: list[str | bytes] = []
    digits = count_up(rng)
    for digit in digits:
        parts += [f" {WORDS[digit]}", enlarge(images[rng.choice(np.flatnonzero(labels == digit))], SIDE)]
    return talk([(f"count from {WORDS[digits[0]]} to {WORDS[digits[-1]]}", parts)])
