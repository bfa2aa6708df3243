from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.commands import film as module
from oneflow_dist.commands.film import MOST_STATES, Film, join_films, largest, pad
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer


@pytest.fixture
def documents(config: Config, tokenizer: Tokenizer) -> dict[int, Canvas]:
    return {index: blank_canvas([], tokenizer, config.modality, seed=0, index=index) for index in range(3)}


def grow(documents: dict[int, Canvas], tokenizer: Tokenizer, step: int) -> None:
    """Another word at the end of each document."""
    for canvas in documents.values():
        word = np.array(tokenizer.encode(" one")[:1])
        canvas.insert(np.array([len(canvas.tokens) - 1]), word, step)


@pytest.mark.parametrize("num_steps", [1, 5, 47, 48, 49, 96, 97, 500])
def test_states_are_few_even_and_end_with_the_last(
    documents: dict[int, Canvas], tokenizer: Tokenizer, num_steps: int
) -> None:
    film = Film()
    film.take(0, documents)
    for step in range(1, num_steps + 1):
        grow(documents, tokenizer, step)
        film.take(step, documents)
        assert len(film.states) <= MOST_STATES
    film.take(num_steps, documents, is_last=True)
    *before, last = film.states
    assert last == num_steps
    assert len(before) <= MOST_STATES
    assert len(film.states) >= min(num_steps, MOST_STATES // 2)
    assert [step for step in before if step < last] == [*range(0, last, film.stride)]
    assert all(len(state[0].tokens) == 1 + step for step, state in film.states.items())  # as it was then


def test_frames_are_drawn_of_kept_states_alone_and_have_one_size(
    documents: dict[int, Canvas], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = module.draw_numbered

    def count(canvas: Canvas, *options: Any) -> Image.Image:
        drawn.append(len(canvas.tokens))
        return draw(canvas, *options)

    monkeypatch.setattr(module, "draw_numbered", count)
    film = Film()
    for step in range(100):
        film.take(step, documents)
        grow(documents, tokenizer, step + 1)
    film.take(100, documents, is_last=True)
    assert drawn == []
    frames = film.frames(tokenizer)
    assert len(drawn) == len(documents) * len(frames) == len(documents) * len(film.states)
    assert len({frame.size for frame in frames}) == 1
    assert all(frame.getpixel((0, 0)) == frame.getpixel((frame.width - 1, frame.height - 1)) for frame in frames)
    ink = [int((np.asarray(frame.convert("L")) < 100).sum()) for frame in frames]
    assert ink[0] < ink[len(ink) // 2] < ink[-1]


def test_films_of_several_ranks_are_one(documents: dict[int, Canvas], tokenizer: Tokenizer) -> None:
    ends, films, whole = {0: 100, 1: 30, 2: 77}, [Film() for _ in documents], Film()
    for step in range(101):
        for index, film in enumerate(films):
            if step <= ends[index]:
                own = {index: documents[index]}
                grow(own, tokenizer, step)
                film.take(step, own, is_last=step == ends[index])
        whole.take(step, documents, is_last=step == 100)
    joined = join_films(films)
    assert joined.states.keys() == whole.states.keys()
    for step, state in whole.states.items():
        assert state.keys() == joined.states[step].keys()
        assert all(np.array_equal(state[index].tokens, joined.states[step][index].tokens) for index in state)


def test_a_rank_without_documents_adds_none(documents: dict[int, Canvas]) -> None:
    film, empty = Film(), Film()
    film.take(0, documents)
    film.take(3, documents, is_last=True)
    empty.take(0, {}, is_last=True)
    assert join_films([film, empty]).states.keys() == {0, 1, 2, 3}
    assert all(state.keys() == documents.keys() for state in join_films([film, empty]).states.values())


def test_a_picture_is_padded_at_its_right_and_below() -> None:
    pictures = [Image.new("RGB", size, "#000000") for size in ((3, 1), (2, 5))]
    assert largest(pictures) == (3, 5)
    page = np.asarray(pad(pictures[1], (3, 5)).convert("L"))
    assert page.shape == (5, 3)
    assert (page == [0, 0, 255]).all()
