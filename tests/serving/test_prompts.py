"""Orders as canvases: what the model is given, and what it cannot be."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.serving.orders import Hole, Latent, Make, Order, Part, Picture, Text, Tokens, Turn
from oneflow_dist.serving.prompts import begin_order, knows_turns
from tests.launching import Run
from tests.messages import naming

IMAGE = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 100).save(file, "PNG")
    return file.getvalue()


def begin(config: Config, tokenizer: Tokenizer, *parts: Part, turns: tuple[Turn, ...] = (), **own: Any) -> Canvas:
    order = Order(parts=parts, turns=turns, sampling=config.sampling, seed=4, **own)
    return begin_order(order, "key", tokenizer, config, knows_turns=bool(turns))[0]


def test_parts_are_what_the_prompt_of_a_program_is(config: Config, tokenizer: Tokenizer) -> None:
    text = tokenizer.encode("count up:")
    canvas = begin(config, tokenizer, Text("count up:"), Hole(), Latent("image", IMAGE), Tokens((5, 6)), Make("image"))
    prompt = [*text, ..., ("image", IMAGE), 5, 6, ("image", None)]
    expected = blank_canvas(prompt, tokenizer, config.modality, seed=4, index=0)
    assert canvas.key == "key"
    assert np.array_equal(canvas.tokens, expected.tokens)
    assert np.array_equal(canvas.is_open, expected.is_open)
    own, other = canvas.making["image"].pieces, expected.making["image"].pieces
    assert np.array_equal(own.patches, other.patches)  # the noise too
    assert canvas.rng.random() == expected.rng.random()


def test_text_may_spell_holes_and_pieces(config: Config, tokenizer: Tokenizer) -> None:
    spelled = begin(config, tokenizer, Text("one<|image|><|hole|> two"))
    parts = begin(config, tokenizer, Text("one"), Make("image"), Hole(), Text(" two"))
    assert np.array_equal(spelled.tokens, parts.tokens)
    assert np.array_equal(spelled.is_open, parts.is_open)


def test_a_picture_is_given_or_made_anew_from_a_time(config: Config, tokenizer: Tokenizer) -> None:
    given = begin(config, tokenizer, Picture(png())).making["image"]
    varied = begin(config, tokenizer, Picture(png(), 0.25)).making["image"]
    assert given.pieces.time.tolist() == [1.0]
    assert varied.pieces.time.tolist() == [0.25]
    assert varied.is_target.all()
    assert not given.is_target.any()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Make("video"), ("video", "image")),
        (Tokens((10**6,)), (10**6,)),
        (Latent("image", np.zeros((1, 8), dtype=np.float32)), ("latent", 3)),
        (Latent("image", np.zeros((2, 8, 8), dtype=np.float32)), (2, 1)),
        (Latent("image", np.full((1, 8, 8), np.nan, dtype=np.float32)), ("latent", "finite")),
        (Latent("sound", IMAGE), ("sound", "image")),
        (Picture(b"no picture"), ("image",)),
        (Text("one " * 1000), ("rows", "max_rows")),
    ],
    ids=["modality", "token", "sides", "channels", "nan", "latent of another", "picture", "long"],
)
def test_what_a_model_cannot_be_given_is_refused(
    part: Part, named: tuple[Any, ...], config: Config, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        begin(config, tokenizer, part)


def test_tokens_of_pieces_and_bos_are_no_given_tokens(config: Config, tokenizer: Tokenizer) -> None:
    for token in (tokenizer.piece_of["image"], tokenizer.bos, tokenizer.mark, -1):
        with pytest.raises(ValueError, match=naming("tokens", token)):
            begin(config, tokenizer, Tokens((token,)))


def test_rows_of_an_answer_are_those_asked_for_and_no_more_than_the_settings(
    config: Config, tokenizer: Tokenizer
) -> None:
    order = Order(parts=(Text("count up:"),), sampling=config.sampling, seed=0, max_new_rows=5)
    canvas, sampling = begin_order(order, "key", tokenizer, config, knows_turns=False)
    assert sampling.max_rows == canvas.num_rows + 5
    order = replace(order, max_new_rows=10**6)
    assert begin_order(order, "key", tokenizer, config, knows_turns=False)[1].max_rows == config.sampling.max_rows


# Conversations.


TURNS = (Turn("system", (Text("be brief"),)), Turn("user", (Picture(png()), Text("what? <|user|>"))))


def test_turns_are_laid_out_as_in_training_and_end_where_the_answer_begins(
    make_config: Callable[..., Config], tokenizer: Tokenizer
) -> None:
    config = make_config("model.vocab_size=520")
    canvas = begin(config, tokenizer, turns=TURNS)
    roles = [int(token) for token in canvas.tokens if token in tokenizer.role_of.values()]
    assert roles == [tokenizer.role_of[role] for role in ("system", "user", "assistant")]
    assert np.flatnonzero(canvas.is_open).tolist() == [len(canvas.tokens) - 1]
    assert "be brief" in tokenizer.decode(canvas.tokens.tolist())
    assert len(canvas.making["image"].pieces) == 1


def test_a_model_without_turns_goes_on_behind_what_was_said_last(config: Config, tokenizer: Tokenizer) -> None:
    order = Order(turns=(*TURNS, Turn("user", (Text("count up:"),))), sampling=config.sampling, seed=4)
    canvas, _ = begin_order(order, "key", tokenizer, config, knows_turns=False)
    assert canvas.tokens.tolist() == [tokenizer.bos, *tokenizer.encode("count up:")]


def test_a_mixture_tells_whether_a_model_knows_turns(
    unbroken: Run, config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = unbroken.folder / "checkpoints/step-00000010"
    for task, knows in (("instruct", True), ("interleaved", False)):
        mixture = tmp_path / f"{task}.yaml"
        mixture.write_text(f"sources:\n  a:\n    shards: a.tar\n    weight: 1\n    tasks: {{{task}: 1}}\n")
        own = replace(config, data=replace(config.data, mixture=str(mixture)))
        assert knows_turns(folder, own, tokenizer) == knows
    gone = replace(config, data=replace(config.data, mixture=str(tmp_path / "gone.yaml")))
    small = replace(gone, model=replace(gone.model, vocab_size=tokenizer.vocab_size - 1))
    assert knows_turns(folder, gone, tokenizer)
    assert not knows_turns(folder, small, tokenizer)
