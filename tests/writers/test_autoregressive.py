from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.packing import pack
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.llama import stored_tensors, to_llama_config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.process import process_of
from oneflow_dist.sampler import Step, generate, generate_steps, writer_of
from tests.messages import names

PAINT = ("image", None)
SMALL, WIDE = (("image", np.linspace(-1, 1, 64 * n, dtype=np.float32).reshape(1, 8, 8 * n)) for n in (1, 2))
CAUSAL = ("objective.kind=autoregressive", "heads.time_conditioning=none")
PROMPTS: list[Prompt] = [[5, 6, 7], [WIDE], [5, SMALL, 6, WIDE, ...], [5, 6, PAINT], [], [4, ...]]


@pytest.fixture(scope="module", params=["as they are", "with copies"])
def settings(request: pytest.FixtureRequest, make_config: Callable[..., Config]) -> Config:
    copies = str(request.param == "with copies").lower()
    return make_config(*CAUSAL, f"objective.copies_pieces={copies}", "sampling.steps=4", "sampling.max_rows=48")


@pytest.fixture(scope="module")
def model(settings: Config, make_model: Callable[..., OneFlow]) -> OneFlow:
    """Of which images are likely, so that documents have some."""
    model = make_model(settings)
    with torch.no_grad():
        model.unembed.weight[load_tokenizer(settings.data.tokenizer, settings.modality).piece_of["image"]] *= 3.0
    return model.eval()


def write(
    model: OneFlow, config: Config, tokenizer: Tokenizer, keeps: bool = True, prompts: list[Prompt] = PROMPTS
) -> tuple[list[Canvas], list[Step]]:
    canvases = [blank_canvas(prompt, tokenizer, config.modality, 3, n) for n, prompt in enumerate(prompts)]
    return canvases, [*generate_steps(model, canvases, config, tokenizer, keeps_rows=keeps)]


@pytest.fixture(params=["plain", "guided"])
def own(request: pytest.FixtureRequest, settings: Config) -> Config:
    guidance = {"tokens": 1.5, "image": 2.0} if request.param == "guided" else {}
    return replace(settings, sampling=replace(settings.sampling, guidance=guidance, top_p=1.0))


def test_rows_that_are_kept_change_nothing(
    model: OneFlow, own: Config, tokenizer: Tokenizer, unchecked: Callable[..., AbstractContextManager[None]]
) -> None:
    """Documents of all kinds and lengths in one forward, images among them, guided too: the same tokens and images."""
    with unchecked():
        (kept, steps), (anew, slow) = (write(model, own, tokenizer, keeps) for keeps in (True, False))
    assert len(steps) == len(slow)
    assert sum(len(canvas.latents("image")) for canvas in kept) > len(PROMPTS)
    for one, other in zip(kept, anew, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        for a, b in zip(one.latents("image"), other.latents("image"), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=0.0)
    assert sum(step.num_rows for step in steps) < 0.5 * sum(step.num_rows for step in slow)


def test_each_row_is_computed_once_and_those_of_a_moving_piece_in_each_of_its_steps(
    model: OneFlow, settings: Config, tokenizer: Tokenizer
) -> None:
    plain = replace(settings, sampling=replace(settings.sampling, guidance={}))
    for prompt in PROMPTS:
        (canvas,), steps = write(model, plain, tokenizer, prompts=[prompt])
        sample = writer_of(model, plain, tokenizer).snapshot(canvas)
        rows = pack([sample], None, sees="past").counts.rows
        made = int(canvas.making["image"].is_target.sum())
        is_last = bool(canvas.making["image"].is_target.any() and canvas.piece_at.get(len(canvas.tokens) - 1))
        moving = made * settings.modality["image"].num_rows * plain.sampling.steps
        # `<|eos|>` is only said, and a piece that ends a document is never seen as it is in the end.
        unseen = settings.modality["image"].num_rows if is_last else int(canvas.tokens[-1] == tokenizer.eos)
        assert sum(step.num_rows for step in steps) == rows - unseen + moving


def test_documents_do_not_depend_on_their_company(model: OneFlow, own: Config, tokenizer: Tokenizer) -> None:
    together, _ = write(model, own, tokenizer)
    for number, prompt in enumerate(PROMPTS):
        alone = blank_canvas(prompt, tokenizer, own.modality, 3, number)
        generate(model, [alone], own, tokenizer)
        assert alone.tokens.tolist() == together[number].tokens.tolist()


def test_a_step_is_a_token_or_a_step_of_the_piece_at_the_end(
    model: OneFlow, settings: Config, tokenizer: Tokenizer
) -> None:
    canvases = [blank_canvas([], tokenizer, settings.modality, 3, n) for n in range(4)]
    lengths = [1] * 4
    for step in generate_steps(model, canvases, settings, tokenizer):
        for number, change in step.changes.items():
            canvas, moved = canvases[number], len(change.token) == 0
            assert len(canvas.tokens) == lengths[number] + (not moved)
            assert change.place.tolist() == [] if moved else [len(canvas.tokens) - 1]
            lengths[number] = len(canvas.tokens)
            times = canvas.making["image"].pieces.time
            assert (times[:-1] == 1.0).all()  # only the last one may move
    assert all(canvas.tokens[-1] == tokenizer.eos or canvas.hit_cap for canvas in canvases)


def test_what_the_network_sees_is_what_training_makes_of_the_same_document(
    model: OneFlow, settings: Config, tokenizer: Tokenizer, make_sample: Callable[..., Any]
) -> None:
    """A finished document, as the writer lays it out to go on, and as a sample."""
    prompt: Prompt = [5, SMALL, 6, SMALL, 7, ...]
    canvas = blank_canvas(prompt, tokenizer, settings.modality, 0, 0)
    canvas.making["image"].is_target[:] = True  # as if they had been made
    seen = writer_of(model, settings, tokenizer).snapshot(canvas)
    image = tokenizer.piece_of["image"]
    sample = make_sample([tokenizer.bos, 5, None, 6, None, 7])
    sample = replace(sample, tokens=np.where(sample.tokens == 258, image, sample.tokens))
    process = process_of(settings, tokenizer.eos, tokenizer.mark)
    made = process.noise(process.prepare(sample), np.random.default_rng(0))
    assert seen.tokens.tolist() == made.tokens.tolist()
    assert seen.block_ends == made.block_ends
    one, other = (pack([own], None, sees="past") for own in (seen, made))
    assert one.row_end is not None
    assert other.row_end is not None
    assert torch.equal(one.row_end, other.row_end)
    assert torch.equal(one.position, other.position)
    assert torch.equal(one.pieces[0].patch_row, other.pieces[0].patch_row)


@pytest.mark.parametrize("prompt", [[5, ..., 6], [PAINT, 5], [PAINT, PAINT], [..., PAINT]])
def test_what_is_to_be_made_before_the_end_is_refused(
    prompt: Prompt, model: OneFlow, settings: Config, tokenizer: Tokenizer
) -> None:
    canvas = blank_canvas(prompt, tokenizer, settings.modality, 0, 0)
    with pytest.raises(ValueError, match="before its end") as refused:
        generate(model, [canvas], settings, tokenizer)
    assert names(str(refused.value), "autoregressive")


def llama_of(model: OneFlow, config: Config) -> LlamaForCausalLM:
    """The same weights in transformers."""
    llama = LlamaForCausalLM(LlamaConfig(**to_llama_config(config, torch.float32))).eval()
    stored: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        stored |= stored_tensors(name, parameter.detach(), config.model)
    llama.load_state_dict(stored)
    return llama


@pytest.fixture
def without_images(make_config: Callable[..., Config]) -> Config:
    config = make_config(*CAUSAL, "data.tokenizer=bytes", "sampling.top_k=1", "sampling.max_rows=208")
    return replace(config, modality={}, sampling=replace(config.sampling, guidance={}))


def test_without_images_greedy_text_is_that_of_llama(
    without_images: Config, make_model: Callable[..., OneFlow]
) -> None:
    """Logits to 1e-5 of the largest, and the same 200 tokens."""
    tokenizer = load_tokenizer("bytes", {})
    model = make_model(without_images).eval()
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"embed", "blocks", "heads", "unembed"}
    canvas = blank_canvas([72, 101, 108, 108, 111, 32, 33], tokenizer, {}, 0, 0)
    prompt = torch.from_numpy(copy.copy(canvas.tokens))[None]
    generate(model, [canvas], without_images, tokenizer)
    llama = llama_of(model, without_images)
    never = [tokenizer.eos, *range(tokenizer.vocab_size, without_images.model.vocab_size)]
    given = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "eos_token_id": None}
    theirs = llama.generate(prompt, max_new_tokens=200, do_sample=False, suppress_tokens=never, **given)
    assert len(canvas.tokens) == 208
    assert canvas.tokens.tolist() == theirs[0].tolist()
    assert len(set(canvas.tokens[8:].tolist())) > 20  # there is something to compare
    sample = writer_of(model, without_images, tokenizer).snapshot(canvas)
    with torch.no_grad():
        own = model.bag_logits(model(pack([sample], None, sees="past")).slot_hidden)
        expected = llama(theirs).logits[0]
    torch.testing.assert_close(own, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))
