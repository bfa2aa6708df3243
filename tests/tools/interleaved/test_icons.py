from __future__ import annotations

import numpy as np
import pytest

from oneflow_dist.evaluation.interleaved.scenes import COLOURS, NOUNS
from tests.tools.interleaved.made_up import emoji
from tools.interleaved.icons import CELL, EMOJI, TINTS, all_boards, make_icon, paint_board

ICON = np.random.default_rng(0).random((CELL, CELL), dtype=np.float32)


def cells_of(board: np.ndarray) -> list[np.ndarray]:
    return [board[8 * top : 8 * top + 8, 8 * left : 8 * left + 8] for top in range(2) for left in range(2)]


def test_every_noun_has_an_emoji_and_every_colour_a_tint() -> None:
    assert (EMOJI.keys(), TINTS.keys()) == (NOUNS.keys(), {*COLOURS})


def test_an_icon_does_not_depend_on_where_its_emoji_stands() -> None:
    icon = make_icon(emoji(1, left=2))
    assert np.array_equal(icon, make_icon(emoji(1, left=8)))
    assert not np.array_equal(icon, make_icon(emoji(2, left=2)))


def test_an_icon_is_light_where_the_emoji_is_and_dark_where_it_is_dark() -> None:
    icon = make_icon(emoji(1))
    assert (icon.dtype, icon.shape) == (np.float32, (CELL, CELL))
    assert icon.min() >= 0.0
    assert icon.max() == 1.0
    assert icon.min() < 0.3


def test_a_board_has_the_icon_in_its_cells_and_white_elsewhere() -> None:
    cells = cells_of(paint_board(ICON, "red", (1, 2)))
    assert (cells[0] == 255).all()
    assert (cells[3] == 255).all()
    assert np.array_equal(cells[1], cells[2])
    assert cells[1].min() < 255


@pytest.mark.parametrize("colour", COLOURS)
def test_the_darkest_place_has_the_tint_and_the_lightest_is_white(colour: str) -> None:
    icon = np.zeros((CELL, CELL), dtype=np.float32)
    icon[2, 3] = 1.0
    board = paint_board(icon, colour, (0,))
    assert tuple(board[2, 3]) == TINTS[colour]
    assert (np.delete(board.reshape(-1, 3), 2 * 16 + 3, axis=0) == 255).all()


@pytest.mark.parametrize(("count", "number", "filled"), [("one", 4, 1), ("two", 6, 2), ("three", 4, 3)])
def test_a_label_has_a_picture_for_every_choice_of_cells(count: str, number: int, filled: int) -> None:
    boards = all_boards({"fish": ICON}, f"{count} blue fish")
    assert len({board.tobytes() for board in boards}) == number
    for board in boards:
        assert sum(bool((cell < 255).any()) for cell in cells_of(board)) == filled
