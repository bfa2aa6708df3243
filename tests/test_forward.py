from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.model.oneflow import OneFlow

PAINT = ("image", None)
SMALL, WIDE = (("image", np.linspace(-1, 1, 64 * n, dtype=np.float32).reshape(1, 8, 8 * n)) for n in (1, 2))


@pytest.fixture(scope="module")
def settings(make_config: Callable[..., Config]) -> Config:
    return make_config("model.prompt_sees=prompt", "heads.time_conditioning=adaln")


@pytest.fixture(scope="module")
def model(settings: Config, make_model: Callable[..., OneFlow]) -> OneFlow:
    model, generator = make_model(settings), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # else heads and modulations are silent
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def canvases(settings: Config, tokenizer: Tokenizer) -> list[Canvas]:
    """Text behind text, behind a given image and behind several; an image to paint; free text; holes in a prompt."""
    prompts: list[Prompt] = [
        *([5, 6, 7], [WIDE], [5, SMALL, 6, WIDE], [5, 6, PAINT], []),
        [4, SMALL, ..., 6, WIDE, ..., 7],
    ]
    return [blank_canvas(prompt, tokenizer, settings.modality, 1, n) for n, prompt in enumerate(prompts)]


def write(canvases: list[Canvas], step: int) -> list[NoisySample]:
    """A token in every open slot, and a second later; in every third an image."""
    for number, canvas in enumerate(canvases):
        slots = np.flatnonzero(canvas.is_open)
        image = canvas.making["image"].token
        canvas.insert(slots, np.where((slots + step + number) % 3 == 0, image, slots + 65), step)
        if canvas.is_writing:
            canvas.text_time = 0.3 * step
    return [canvas.snapshot() for canvas in canvases]


def names_of(samples: list[NoisySample]) -> list[tuple[str, str]]:
    return [(sample.key, "") for sample in samples]


@torch.no_grad()
def ask(forward: Forward, samples: list[NoisySample]) -> Prediction:
    return forward(samples, names_of(samples))


def assert_close_where_it_is_read(found: Prediction, expected: Prediction, samples: list[NoisySample]) -> None:
    is_open = torch.from_numpy(np.concatenate([sample.is_open for sample in samples]))
    for name in ("zero_logit", "log_rate", "slot_hidden"):
        own, other = getattr(found, name), getattr(expected, name)
        assert own.shape == other.shape
        torch.testing.assert_close(own[is_open], other[is_open], atol=1e-6, rtol=1e-6)
    for kind, (own, other) in enumerate(zip(found.velocity, expected.velocity, strict=True)):
        moves = [s.pieces[kind].pieces.per_patch(s.pieces[kind].is_moving) for s in samples]
        is_read = torch.from_numpy(np.concatenate(moves))
        assert own.shape == other.shape
        torch.testing.assert_close(own[is_read], other[is_read], atol=1e-6, rtol=1e-6)


def test_with_prompts_kept_the_model_says_the_same_step_after_step(
    model: OneFlow, canvases: list[Canvas], unchecked: Callable[..., AbstractContextManager[None]]
) -> None:
    """Also when blocks are finished, at different times, and when documents leave; in float64, as rounding grows."""
    exact = copy.deepcopy(model).double()
    kept, anew = Forward(exact, "prompt"), Forward(exact, "prompt", keeps=False)
    for step in range(1, 7):
        write(canvases, step)
        if step == 3:
            for canvas in (canvases[0], canvases[2]):
                canvas.begin_block()
        if step == 5:
            for canvas in canvases[:2]:
                canvas.begin_block()
            canvases = canvases[:3]
        samples = [canvas.snapshot() for canvas in canvases]
        with unchecked():
            assert_close_where_it_is_read(ask(kept, samples), ask(anew, samples), samples)
    assert kept.num_rows < 0.7 * anew.num_rows


def test_each_row_of_a_prompt_is_computed_once(model: OneFlow, canvases: list[Canvas]) -> None:
    forward = Forward(model, "prompt")
    first, second = write(canvases, 1), write(canvases, 2)
    ask(forward, first)
    assert forward.num_rows == sum(pack([sample], None).counts.rows for sample in first)
    before = forward.num_rows
    ask(forward, second)
    in_front = [
        int((batch.row_end != len(batch.position)).sum())
        for batch in (pack([sample], None, sees="prompt") for sample in second)
    ]
    assert in_front == [3, 9, 16, 2, 0, 6]
    written = sum(pack([sample], None).counts.rows for sample in second) - sum(in_front)
    assert forward.num_rows - before == written


def test_finished_documents_are_forgotten(model: OneFlow, canvases: list[Canvas], settings: Config) -> None:
    forward = Forward(model, "prompt")
    assert forward.num_bytes == 0
    ask(forward, write(canvases, 1))
    config = settings.model
    of_row = 2 * config.num_layers * config.num_kv_heads * (config.width // config.num_attention_heads) * 4
    assert forward.num_bytes == (3 + 9 + 16 + 2 + 6) * of_row
    forward.forget(canvases[2].key)
    assert forward.num_bytes == (3 + 9 + 2 + 6) * of_row


def test_where_prompts_see_all_nothing_is_kept(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow], canvases: list[Canvas]
) -> None:
    model = make_model(make_config("heads.time_conditioning=adaln"))
    forward, samples = Forward(model, "all"), write(canvases, 1)
    found = ask(forward, samples)
    with torch.no_grad():
        expected = model(pack(samples, None))
    assert found.slot_hidden.equal(expected.slot_hidden)
    assert forward.num_bytes == 0


def test_a_prompt_is_blind_to_what_is_written_behind_it(model: OneFlow, canvases: list[Canvas]) -> None:
    """Of a closed prompt the last token sees what follows: its slot is where that begins."""
    sample = write(canvases, 1)[2]
    end = sample.block_ends[0]
    tokens = sample.tokens.copy()
    tokens[-1] = 90 if tokens[-1] != 90 else 91
    with torch.no_grad():
        one, other = (
            model(pack([own], None, sees="prompt")).slot_hidden for own in (sample, replace(sample, tokens=tokens))
        )
    assert one[: end - 1].equal(other[: end - 1])
    assert not torch.isclose(one[end - 1 :], other[end - 1 :]).all(1).any()
