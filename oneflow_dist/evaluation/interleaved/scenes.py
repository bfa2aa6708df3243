"""What documents of the benchmark say: counting words, and scenes of stories, as labels to compare images with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = {
    "fish": "fish",
    "mouse": "mice",
    "rabbit": "rabbits",
    "penguin": "penguins",
    "butterfly": "butterflies",
    "rooster": "roosters",
}
COLOURS = ("red", "blue", "green", "orange", "purple")
COUNTS = ("one", "two", "three")
LEADS = ("first", "then", "again")
_SCENE = re.compile(
    rf"({'|'.join(LEADS)}) ({'|'.join(COUNTS)}) ({'|'.join(COLOURS)}) ({'|'.join([*NOUNS, *NOUNS.values()])})"
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the texts of one kind of document mean."""

    read: Callable[[str], str | None]  # the label that a stretch of text gives the image after it; None: no such text
    accepts: Callable[[Sequence[str], Mapping[str, Any]], bool]  # whether labels, in this order, answer an item
    attributes: tuple[str, ...]  # what the parts of a label, between blanks, are called


def say_scene(lead: str, label: str) -> str:
    """The text of a scene; a label is as "two red fish", its noun in the singular."""
    count, colour, noun = label.split()
    return f"{lead} {count} {colour} {noun if count == 'one' else NOUNS[noun]}"


def read_scene(text: str) -> str | None:
    """The label of a scene's text; None where it is none, or its noun has the wrong number."""
    found = _SCENE.fullmatch(text.strip())
    if found is None:
        return None
    singular = {plural: noun for noun, plural in NOUNS.items()} | {noun: noun for noun in NOUNS}
    label = f"{found[2]} {found[3]} {singular[found[4]]}"
    return label if say_scene(found[1], label) == found[0] else None


def is_told(labels: Sequence[str], fields: Mapping[str, Any]) -> bool:
    """Whether these are the scenes that were asked for."""
    return list(labels) == list(fields["scenes"])


def read_digit(text: str) -> str | None:
    """The word of a digit."""
    return text.strip() if text.strip() in DIGITS else None


def counts_up(labels: Sequence[str], fields: Mapping[str, Any]) -> bool:
    """Whether one to `longest` digits count up; where there may be more than ten, zero follows nine."""
    longest, numbers = int(fields["longest"]), [DIGITS.index(label) for label in labels]
    steps = (1, -9) if longest > 10 else (1,)
    return 1 <= len(numbers) <= longest and all(b - a in steps for a, b in itertools.pairwise(numbers))


COUNTING = Grammar(read=read_digit, accepts=counts_up, attributes=())
STORIES = Grammar(read=read_scene, accepts=is_told, attributes=("count", "colour", "who"))
