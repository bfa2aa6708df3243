from __future__ import annotations

import pytest

from tools.stages.shapes import caption_of

FACTS = [("what color is the circle?", "teal"), ("is there a red shape?", "no"), ("what shape is present?", "circle")]


@pytest.mark.parametrize(
    ("turns", "caption"),
    [
        (FACTS, "a teal circle"),
        (FACTS[:1], "a teal circle"),
        (FACTS[2:], "a circle"),
        ([("what is the color of the shape?", "red")], "a red shape"),
        ([("what is the blue shape?", "triangle")], "a blue triangle"),
        (FACTS[1:2], ""),
    ],
)
def test_a_caption_is_what_open_questions_say(turns: list[tuple[str, str]], caption: str) -> None:
    """Of a question that may be answered by no, nothing is known."""
    assert caption_of(turns) == caption
