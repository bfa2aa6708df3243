"""What a test states of a message: the keys, files and values that it names, in their order, not the prose between."""

from __future__ import annotations

import re

EDGE = r"(?:(?<!\w)|(?!\w))"  # not inside a word or number: 1 is not named by 10


def naming(*parts: object) -> str:
    """A pattern, for `match`, of a line that names all parts in this order."""
    return ".*".join(f"{EDGE}{re.escape(str(part))}{EDGE}" for part in parts)


def names(message: str, *parts: object) -> bool:
    """Whether `message` is one line that names all parts in this order."""
    return re.fullmatch(f".*{naming(*parts)}.*\n?", message) is not None


class Message(str):
    """A message that equals another if both name the same things in the same order, whatever prose stands between.

    So a test can show what a user reads. Named is whatever is no plain word of lower-case letters: keys with a section,
    files, numbers, commands, and all that is quoted.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and named_in(self) == named_in(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def named_in(message: str) -> list[str]:
    """What a message names, in order."""
    tokens = [token.strip("(),;:.!?") for token in re.findall(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S+", message)]
    return [token for token in tokens if token and not re.fullmatch(r"[a-z]+(['-][a-z]+)*", token)]
