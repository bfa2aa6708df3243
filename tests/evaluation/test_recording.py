from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.answers import read_png, strip_name
from oneflow_dist.evaluation.recording import States, draw_made, parts_of, write_pictures


@pytest.fixture
def make_canvas(tokenizer: Tokenizer, config: Config) -> Callable[[Prompt], Canvas]:
    return lambda prompt: blank_canvas(prompt, tokenizer, config.modality, 0, 0)


def insert(canvas: Canvas, place: int, token: int, step: int) -> None:
    """After the token at `place`."""
    canvas.insert(np.array([place]), np.array([token]), step)


def test_only_what_was_made_is_an_answer(make_canvas: Callable[[Prompt], Canvas], tokenizer: Tokenizer) -> None:
    given = np.zeros((1, 8, 8), dtype=np.float32)
    front = tokenizer.encode(" two")
    canvas = make_canvas([*front, ("image", given), ("image", None)])
    last = len(canvas.tokens) - 1
    for step, token in ((3, tokenizer.encode(" three")[0]), (4, tokenizer.piece_of["image"]), (5, tokenizer.eos)):
        insert(canvas, last, token, step)
        last += 1
    painted, text, image = parts_of(canvas, tokenizer, "k.0")
    assert (painted.image, painted.born) == ("k.0-0.png", (0,))
    assert (text.text, text.tokens, text.born) == ("three", (" three",), (3,))
    assert (image.image, image.born) == ("k.0-1.png", (4,))
    assert len(draw_made(canvas)) == 2


def test_given_text_parts_what_was_written_before_and_after_it(
    make_canvas: Callable[[Prompt], Canvas], tokenizer: Tokenizer
) -> None:
    (one,), (two,), (three,) = (tokenizer.encode(f" {word}") for word in ("one", "two", "three"))
    canvas = make_canvas([..., two, ...])
    insert(canvas, 1, three, 1)
    insert(canvas, 0, one, 2)
    assert [part.text for part in parts_of(canvas, tokenizer, "k")] == ["one", "three"]


def test_a_picture_has_its_end(make_canvas: Callable[[Prompt], Canvas], tokenizer: Tokenizer) -> None:
    canvas = make_canvas([("image", None)])
    canvas.making = {kind: replace(making, end=np.array([9])) for kind, making in canvas.making.items()}
    (part,) = parts_of(canvas, tokenizer, "k")
    assert part.end == 9


def test_states_stand_side_by_side_from_birth_to_end(
    make_canvas: Callable[[Prompt], Canvas], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The second picture is born before the first in the text, at step 2: files go by the text's order."""
    canvas = make_canvas([])
    states, image = States([canvas]), tokenizer.piece_of["image"]
    insert(canvas, 0, image, 1)
    states.take(1, [0])
    insert(canvas, 0, image, 2)
    for step in (2, 3):
        states.take(step, [0])
    parts = parts_of(canvas, tokenizer, "k")
    assert [part.born for part in parts] == [(2,), (1,)]
    write_pictures(canvas, parts, tmp_path)
    states.write(0, parts, tmp_path)
    for part, number in zip(parts, (2, 3), strict=True):
        last, strip = (np.asarray(read_png(tmp_path / name)) for name in (part.image, strip_name(part.image)))
        assert strip.shape[:2] == (last.shape[0], number * last.shape[1])
        np.testing.assert_array_equal(strip[:, -last.shape[1] :], last)
