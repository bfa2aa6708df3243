from __future__ import annotations

import itertools

import numpy as np
import pytest

from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.evaluation.interleaved.scenes import NOUNS
from tools.boards.grammar import (
    BRIGHTEST,
    DIMMEST,
    FARTHEST,
    LABELS,
    draw_board,
    load_icons,
    read_caption,
    read_pictures,
    write_caption,
)
from tools.interleaved.icons import all_boards

SENTENCES = {write_caption(label): label for label in LABELS}


def latents_of(boards: list[np.ndarray]) -> np.ndarray:
    return np.stack([pixels_to_latent(board) for board in boards])


def test_every_noun_has_an_icon_of_its_own_that_is_dark_somewhere() -> None:
    icons = load_icons()
    assert list(icons) == [*NOUNS]
    for icon in icons.values():
        assert (icon.dtype, icon.shape, icon.max()) == (np.float32, (8, 8), 1.0)
        assert icon.min() < 0.1
    assert all(np.abs(a - b).mean() > 0.1 for a, b in itertools.combinations(icons.values(), 2))


def test_every_sentence_tells_its_label() -> None:
    assert len(SENTENCES) == 3 * 5 * 6
    assert {text: read_caption(text) for text in SENTENCES} == SENTENCES
    assert write_caption(("one", "red", "mouse")) == "one red mouse"
    assert write_caption(("three", "blue", "mouse")) == "three blue mice"


@pytest.mark.parametrize(
    "text",
    ["", "two red", "two red mouse", "one red mice", " two red mice", "two red mice ", "two  red mice", "red two mice",
     "first two red mice", "four red mice", "two pink mice", "two red mice mice"],
)  # fmt: skip
def test_other_sentences_tell_nothing(text: str) -> None:
    assert read_caption(text) is None


def test_pictures_are_read_as_what_they_were_drawn_of_and_all_are_near() -> None:
    rng = np.random.default_rng(0)
    sights = read_pictures(latents_of([draw_board(label, rng) for label in LABELS for _ in range(10)]))
    assert [sight.label for sight in sights] == [label for label in LABELS for _ in range(10)]
    assert max(sight.distance for sight in sights) < FARTHEST


def test_nothing_is_near_to_boards_of_two_labels() -> None:
    icons = load_icons()
    boards = [latents_of(all_boards(icons, " ".join(label))) for label in LABELS]
    every = np.concatenate(boards).reshape(-1, 3 * 16 * 16).astype(np.float64)
    owner = np.repeat(np.arange(len(LABELS)), [len(own) for own in boards])
    norm = (every**2).sum(1)
    squared = (norm[:, None] + norm - 2.0 * every @ every.T) / every.shape[1]
    least = squared[owner[:, None] != owner].min()
    assert (np.sqrt(least) / 2.0) ** 2 >= FARTHEST


def test_a_board_without_noise_is_at_no_distance_in_all_lights_that_a_reader_knows() -> None:
    board = all_boards(load_icons(), "three orange rabbit")[1].astype(np.float32)
    lit = [np.minimum(light * board, 255.0) / 127.5 - 1.0 for light in (DIMMEST, 1.0, BRIGHTEST)]
    sights = read_pictures([latent.transpose(2, 0, 1) for latent in lit])
    assert [sight.label for sight in sights] == [("three", "orange", "rabbit")] * 3
    assert [sight.distance for sight in sights] == pytest.approx([0.0] * 3, abs=1e-9)


def test_what_lies_beyond_the_pixels_is_clipped_and_half_a_figure_is_none() -> None:
    board = all_boards(load_icons(), "one green fish")[0]
    latent = latents_of([board])[0]
    beyond = np.where(np.abs(latent) >= 1.0, 3.0 * latent, latent)
    cut = latent.copy()
    cut[:, 4:] = 1.0
    whole, same, half = read_pictures([latent, beyond, cut])
    assert whole == same
    assert half.distance > FARTHEST


def test_two_pictures_of_a_label_differ_in_their_light_and_their_noise() -> None:
    rng = np.random.default_rng(1)
    boards = [draw_board(LABELS[7], rng).astype(np.float64) for _ in range(40)]
    assert len({board.tobytes() for board in boards}) == 40
    white = [board[board.min(axis=2) > 200].mean() for board in boards]
    assert 0.9 * 255.0 - 2.0 < min(white) < 0.93 * 255.0
    assert max(white) <= 255.0


def test_no_pictures_are_read_as_nothing() -> None:
    assert read_pictures([]) == []
