"""Events of documents: whoever follows them has the document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oneflow_dist.canvas import Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import Sampler
from oneflow_dist.serving.orders import Order, Text, Turn
from oneflow_dist.serving.telling import Event, Telling
from tests.test_sampler import KINDS, PAINT

Maker = Callable[..., OneFlow]
BLOCKS = {"insertion": ("sampling.blocks=4",), "masked": ("sampling.blocks=3",)}
GIVEN = ("image", np.zeros((1, 8, 8), dtype=np.float32))


def follow(
    model: OneFlow, config: Config, tokenizer: Tokenizer, prompt: Prompt, seed: int, has_turns: bool = False
) -> tuple[Event, list[Event], list[Event], Event]:
    """What is told of a document: its begin, its steps, what became final, and its end."""
    turns = (Turn("user", (Text(""),)),) if has_turns else ()
    order = Order(sampling=config.sampling, seed=seed, follows="steps", preview_steps=2, turns=turns)
    canvas = blank_canvas(prompt, tokenizer, config.modality, seed, 0)
    telling, sampler = Telling(order=order, canvas=canvas, tokenizer=tokenizer), Sampler(model, config, tokenizer)
    sampler.add(0, canvas, config.sampling)
    begin, steps, final = telling.begin(), [], []
    while sampler.writes:
        change = sampler.step().changes[0]
        telling.follow(change)
        steps.append(telling.step(change, sampler.steps_left(0)))
        final += telling.final_parts()
    return begin, steps, final, telling.done()


def replay(begin: Event, steps: list[Event]) -> list[tuple[int, int, float | None]]:
    """Id, step and probability of every token after all steps."""
    tokens: list[tuple[int, int, float | None]] = [(token["id"], 0, None) for token in begin["tokens"]]
    for step in steps:
        for each in step["inserted"]:
            tokens.insert(each["place"], (each["id"], step["step"], each["prob"]))
        tokens = [token for place, token in enumerate(tokens) if place not in step["removed"]]
    return tokens


@pytest.fixture
def case(make_config: Callable[..., Config], make_model: Maker) -> Callable[..., tuple[OneFlow, Config, Tokenizer]]:
    def make(kind: str, *overrides: str) -> tuple[OneFlow, Config, Tokenizer]:
        own = ("sampling.steps=6", "sampling.max_rows=40", "sampling.guidance={}")
        config = make_config(*KINDS[kind], *own, *overrides)
        return make_model(config, noise=0.05), config, load_tokenizer(config.data.tokenizer, config.modality)

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [[], [5, 6, ...], [GIVEN, 7], [5, PAINT]], ids=["free", "text", "given", "paint"])
def test_steps_replayed_are_the_document(kind: str, prompt: Prompt, case: Any) -> None:
    model, config, tokenizer = case(kind)
    for seed in range(3):
        begin, steps, _, done = follow(model, config, tokenizer, prompt, seed)
        tokens = [(token["id"], token["step"], token["prob"]) for token in done["tokens"]]
        assert replay(begin, steps) == tokens
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        assert done["steps"] == len(steps)
        assert steps[-1]["steps_left"] == 0
        for kind_of_piece, pieces in done["pieces"].items():
            assert len(steps[-1]["times"][kind_of_piece]) == len(pieces)
        assert all(
            token["modality"] == "image" for token in done["tokens"] if token["id"] == tokenizer.piece_of["image"]
        )


def test_probabilities_stay_with_their_tokens_when_some_are_taken_back(case: Any) -> None:
    model, config, tokenizer = case("insertion", "sampling.corrections=2")
    taken_back = 0
    for seed in range(4):
        begin, steps, _, done = follow(model, config, tokenizer, [5, 6], seed)
        taken_back += sum(len(step["removed"]) for step in steps)
        assert replay(begin, steps) == [(token["id"], token["step"], token["prob"]) for token in done["tokens"]]
    assert taken_back > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_final_is_told_once_in_order_and_is_the_answer(kind: str, case: Any) -> None:
    model, config, tokenizer = case(kind)
    for seed in range(4):
        _, _, final, done = follow(model, config, tokenizer, [5, 6], seed)
        written = [token for token in done["tokens"] if token["step"]]
        ids = [token["id"] for token in written if "modality" not in token and token["id"] != tokenizer.eos]
        assert "".join(part["text"] for part in final if "text" in part).encode() == b"".join(
            tokenizer.decode([*map(int, group)]).encode() for group in _groups(written, tokenizer)
        )
        assert [part["number"] for part in final if "modality" in part] == [
            token["number"] for token in written if "modality" in token
        ]
        assert all(part["picture"].shape == (8, 8) for part in final if "modality" in part)
        assert len(ids) == len([token for token in written if "modality" not in token and token["id"] != tokenizer.eos])


def _groups(written: list[Event], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of tokens between pieces."""
    groups: list[list[int]] = [[]]
    for token in written:
        if "modality" in token:
            groups.append([])
        elif token["id"] != tokenizer.eos:
            groups[-1].append(token["id"])
    return groups


def test_text_of_next_tokens_is_final_as_it_comes_and_no_character_is_cut(case: Any) -> None:
    _, config, tokenizer = case("autoregressive", "data.tokenizer=bytes")
    order = Order(sampling=config.sampling, seed=0)
    canvas = blank_canvas([...], tokenizer, config.modality, 0, 0)
    telling = Telling(order=order, canvas=canvas, tokenizer=tokenizer)
    told = []
    for byte in "aé≈𝄞!".encode():
        canvas.insert(np.array([len(canvas.tokens) - 1]), np.array([byte]), 1)
        canvas.is_open = np.arange(len(canvas.tokens)) == len(canvas.tokens) - 1
        told += [part["text"] for part in telling.final_parts()]
    assert told == ["a", "é", "≈", "𝄞", "!"]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_told_as_the_text_that_they_are_together(kind: str, case: Any) -> None:
    """Random ones, few of which are characters."""
    model, config, tokenizer = case(kind, "data.tokenizer=bytes", *BLOCKS.get(kind, ()))
    prompt, num_told = [*"é".encode()], 0
    for seed in range(6):
        begin, _, final, done = follow(model, config, tokenizer, prompt, seed)
        assert [token["id"] for token in begin["tokens"]] == prompt
        said = [token["id"] for token in done["tokens"] if token["id"] != tokenizer.eos]
        assert done["text"] == tokenizer.decode(said)
        assert done["text"].startswith("é")
        between = [""]
        for part in final:
            between = [*between, ""] if "modality" in part else [*between[:-1], between[-1] + part["text"]]
        groups = _groups([token for token in done["tokens"] if token["step"]], tokenizer)
        assert between == [tokenizer.decode(group) for group in groups]
        num_told += len(final)
    assert num_told > 6


def test_a_document_of_insertion_is_final_at_its_end_and_blocks_are_one_by_one(case: Any) -> None:
    model, config, tokenizer = case("insertion")
    blocks = replace(config, sampling=replace(config.sampling, blocks=5))
    counts = []
    for own in (config, blocks):
        order = Order(sampling=own.sampling, seed=0)
        canvas = blank_canvas([5, 6], tokenizer, own.modality, 1, 0)
        telling, sampler = Telling(order=order, canvas=canvas, tokenizer=tokenizer), Sampler(model, own, tokenizer)
        sampler.add(0, canvas, own.sampling)
        times = 0
        while sampler.writes:
            sampler.step()
            times += bool(telling.final_parts())
        counts.append(times)
    assert counts[0] <= 1 < counts[1]


def test_pictures_are_shown_at_previews_and_when_they_are_done(case: Any) -> None:
    model, config, tokenizer = case("insertion")
    begin, steps, _, done = follow(model, config, tokenizer, [5, PAINT, GIVEN], 0)
    assert [piece["is_given"] for piece in begin["pieces"]["image"]] == [False, True]
    shown = [step["step"] for step in steps if step["pictures"]]
    assert shown == sorted({*range(2, len(steps) + 1, 2), done["pieces"]["image"][0]["last_step"]})
    assert all(set(step["pictures"]["image"]) == {0} for step in steps if step["pictures"])  # that which is made
    last = steps[-1]["pictures"]["image"][0]
    assert np.array_equal(last, done["pieces"]["image"][0]["picture"])


def test_places_of_a_masked_model_know_of_no_masks(case: Any) -> None:
    model, config, tokenizer = case("masked")
    begin, steps, _, _ = follow(model, config, tokenizer, [5, ..., 6], 0)
    assert [token["id"] for token in begin["tokens"]] == [5, 6]
    assert all(each["place"] >= 1 for step in steps for each in step["inserted"])
