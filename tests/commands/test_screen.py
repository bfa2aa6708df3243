from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.commands.screen import NEW, PLAIN, Screen, half_blocks, printable, wrap


def bare(line: str) -> str:
    """Without colours."""
    return re.sub(r"\033\[[0-9;]*[A-Za-z]", "", line)


@given(st.lists(st.tuples(st.text("ab \n日", max_size=30), st.sampled_from(["", NEW])), max_size=5), st.integers(2, 9))
def test_lines_hold_all_of_a_text_and_are_no_wider_than_the_terminal(runs: list[tuple[str, str]], columns: int) -> None:
    lines = [bare(line) for line in wrap(runs, columns)]
    assert "".join(lines) == "".join(text for text, _ in runs).replace("\n", "")
    for line in lines:
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= columns


def test_new_text_is_bright_in_every_line_that_it_wraps_to() -> None:
    assert wrap([("ab", ""), ("cde", NEW), ("f", "")], 3) == [f"ab{NEW}c{PLAIN}", f"{NEW}de{PLAIN}f"]


def test_what_is_drawn_again_takes_the_place_of_what_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(columns=4, rows=3)
    screen.draw([("abcdefghij", "")])
    screen.draw([("x", "")])
    screen.clear()
    drawn = capsys.readouterr().out
    assert drawn == "\r\033[Jefgh\nij" + "\r\033[1A\033[Jx" + "\r\033[J"  # of three lines two fit above the cursor's


@pytest.mark.parametrize("text", ["\033[2Jx", "\x9b2Jx", "\rx", "\ax", "\u202ex", "\0x"])
def test_a_terminal_is_told_nothing_by_what_a_model_writes(text: str) -> None:
    assert not set(printable(text)) & set("\033\x9b\r\a\u202e\0")
    assert printable(text).endswith("x")
    assert printable("a\nb é 日") == "a\nb é 日"


def test_a_character_is_two_pixels_of_a_picture() -> None:
    picture = Image.new("RGB", (2, 2))
    for (x, y), color in {(0, 0): (1, 2, 3), (1, 0): (4, 5, 6), (0, 1): (7, 8, 9), (1, 1): (10, 11, 12)}.items():
        picture.putpixel((x, y), color)
    expected = "\033[38;2;1;2;3;48;2;7;8;9m\u2580\033[38;2;4;5;6;48;2;10;11;12m\u2580"
    assert half_blocks(picture) == expected + PLAIN


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 50), (500, 20)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pictures_of_any_size_fit(size: tuple[int, int], mode: str) -> None:
    lines = half_blocks(Image.new(mode, size), columns=16).split("\n")
    assert all(len(bare(line)) == min(16, size[0]) for line in lines)
