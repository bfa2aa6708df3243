"""HTML in which all that is text has been escaped, and numbers as people read them."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from typing import Any

ALONE = ("img", "input")  # tags that enclose nothing


class Html(str):
    """Is HTML already; every other text is escaped where it becomes a part of this."""

    __slots__ = ()


def tag(name: str, *content: object, **attributes: Any) -> Html:
    """An element; False leaves an attribute out, True gives it no value, and class_ is class."""
    said = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not False}
    inside = "".join(f" {key}" if value is True else f' {key}="{join([value])}"' for key, value in said.items())
    return Html(f"<{name}{inside}>" if name in ALONE else f"<{name}{inside}>{join(content)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """One after another."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column says what a row is."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *lines)), class_="wide")


def folded(title: object, *content: object, is_open: bool = False) -> Html:
    """What is seen when its title is clicked."""
    return tag("details", tag("summary", title), *content, open=is_open)


def duration(seconds: float) -> str:
    """In its two largest units."""
    left = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            return f"{left // size} {unit} {left % size // part} {smaller}"
    return f"{seconds:.3g} s" if seconds < 10 else f"{left} s"


def amount(value: float, unit: str = "") -> str:
    """With a letter for its thousands."""
    power = next((power for power in range(8, 0, -1) if abs(value) >= 1000.0**power), 0)
    return f"{value / 1000.0**power:.3g} {' kMGTPEZY'[power].strip()}{unit}".strip()


def moment(at: float) -> Html:
    """A time of time.time(); page.js adds how long ago that is."""
    return tag("time", time.strftime("%F %T", time.localtime(at)), data_at=round(at))
