"""What a test states of a message: the keys, files and values that it names, in their order, not the prose between."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import get_type_hints

import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.mixture import Source
from oneflow_dist.modality import ModalityConfig

KEYS = {"sources", *get_type_hints(Source)} - {"name"}  # of mixtures and of configs: named, though many are plain words
KEYS |= {key for section in get_type_hints(Config).values() if is_dataclass(section) for key in get_type_hints(section)}
KEYS |= {*get_type_hints(ModalityConfig)}
EDGE = r"(?:(?<!\w)|(?!\w))"  # not inside a word or number: 1 is not named by 10


def refused(call: Callable[..., object], *arguments: object) -> str:
    """What the ValueError says that a call raises."""
    with pytest.raises(ValueError) as error:  # the caller looks at what it says
        call(*arguments)
    return str(error.value)


def naming(*parts: object) -> str:
    """A pattern, for `match`, of a line that names all parts in this order."""
    return ".*".join(f"{EDGE}{re.escape(str(part))}{EDGE}" for part in parts)


def names(message: str, *parts: object) -> bool:
    """Whether `message` is one line that names all parts in this order."""
    return re.fullmatch(f".*{naming(*parts)}.*\n?", message) is not None


class Message(str):
    """A message that equals another if both name the same things in the same order, whatever prose stands between.

    So a test can show what a user reads. Named are keys, and whatever is no plain word of lower-case letters: files,
    numbers, commands, and all that is quoted.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and named_in(self) == what_is_named(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def startswith(self, start: str) -> bool:  # type: ignore[override]
        """Whether what `start` names comes first."""
        named = what_is_named(start)
        return named_in(self)[: len(named)] == named

    def endswith(self, end: str) -> bool:  # type: ignore[override]
        """Whether what `end` names comes last."""
        named = what_is_named(end)
        return named_in(self)[-len(named) :] == named


def named_in(message: str) -> list[str]:
    """What a message names, in order."""
    tokens = [token.lstrip("(").rstrip("),;:.!?") for token in re.findall(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S+", message)]
    return [token for token in tokens if token in KEYS or (token and not re.fullmatch(r"[a-z]+(['-][a-z]+)*", token))]


def what_is_named(example: str) -> list[str]:
    """The same of an example to compare with, which must name something: else nothing is compared."""
    named = named_in(example)
    assert named, f"{example!r} names nothing: compare with a key, a value, a file or a command"
    return named
