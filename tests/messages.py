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
