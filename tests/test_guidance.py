from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import without_condition, without_prompt
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig

Maker = Callable[..., OneFlow]
PAINT = ("image", None)
TEXT = ("gate", "rate", "tokens")
VALUES = {"gate": "zero_logit", "rate": "log_rate", "tokens": "slot_hidden"}


@pytest.fixture(scope="module")
def settings(make_config: Callable[..., Config]) -> Config:
    return make_config("sampling.guidance={}", "heads.time_conditioning=adaln")


@pytest.fixture(scope="module")
def model(settings: Config, make_model: Maker) -> OneFlow:
    return make_model(settings)


@pytest.fixture
def documents(settings: Config, tokenizer: Tokenizer) -> list[NoisySample]:
    """Free text; a prompt and text; an image to paint; a given image, text and an image to paint; holes in a prompt."""
    given = ("image", np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8))
    prompts: list[Prompt] = [[], [5, 6, 7], [5, PAINT], [given, 9, ..., PAINT, 8], [4, 5, ..., 6, given, ..., 7]]
    canvases = [blank_canvas(prompt, tokenizer, settings.modality, 1, index) for index, prompt in enumerate(prompts)]
    return [snapshot_later(canvas) for canvas in canvases]


def snapshot_later(canvas: Canvas) -> NoisySample:
    """With some text in each open place, at text time .4, and images at .3."""
    slots = np.flatnonzero(canvas.is_open)
    canvas.insert(slots, np.arange(len(slots)) + 65, 1)
    if canvas.is_writing:
        canvas.text_time = 0.4
    making = canvas.making["image"]
    time = np.where(making.is_target, 0.3, making.pieces.time)
    canvas.making = {"image": replace(making, pieces=replace(making.pieces, time=time))}
    return canvas.snapshot()


def guided(config: Config, **changes: Any) -> SamplingConfig:
    return replace(config.sampling, **changes)


@torch.no_grad()
def plain(model: OneFlow, samples: list[NoisySample]) -> Prediction:
    return model(pack(samples, None))


@torch.no_grad()
def ask(model: OneFlow, documents: list[NoisySample], sampling: SamplingConfig) -> tuple[Prediction, PackedBatch]:
    """The guided prediction, and the one pack that went through the model."""
    seen: list[PackedBatch] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prediction = predict(Forward(model, "all"), documents, ["image"], [sampling] * len(documents), 1)
    hook.remove()
    (batch,) = seen
    return prediction, batch


def slots_of(documents: list[NoisySample]) -> tuple[np.ndarray, np.ndarray]:
    """Open slots of the documents that have a prompt, and of their copies without it, both in packs of their own."""
    own, other, first, first_copy = [], [], 0, 0
    for document in documents:
        if document.is_open.any() and document.is_given[1:].any():
            copy = without_prompt(document)
            own.append(first + np.flatnonzero(document.is_open))
            other.append(first_copy + np.flatnonzero(copy.is_open))
            first_copy += len(copy.tokens)
        first += len(document.tokens)
    return np.concatenate(own), np.concatenate(other)


def untold(documents: list[NoisySample]) -> list[NoisySample]:
    return [without_prompt(d) for d in documents if d.is_open.any() and d.is_given[1:].any()]


def moving_of(samples: list[NoisySample]) -> np.ndarray:
    """The patches of moving images in a pack."""
    return np.concatenate([s.pieces[0].pieces.per_patch(s.pieces[0].is_moving) for s in samples])


def moving_copies(documents: list[NoisySample]) -> list[NoisySample]:
    return [without_condition(document) for document in documents if document.has_moving]


# Weights of 1 and 0.


def test_weights_of_1_copy_nothing_and_leave_every_bit(
    model: OneFlow, settings: Config, documents: list[NoisySample]
) -> None:
    expected = plain(model, documents)
    for weights in ({}, dict.fromkeys((*TEXT, "image"), 1.0)):
        found, batch = ask(model, documents, guided(settings, guidance=weights))
        assert batch.counts.sequences == len(documents)
        for name in ("zero_logit", "log_rate", "slot_hidden"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.equal(found.velocity[0], expected.velocity[0])


@pytest.mark.parametrize("name", [*TEXT, "image"])
def test_a_weight_of_0_is_the_other_prediction_and_the_others_stay_to_the_bit(
    model: OneFlow, settings: Config, documents: list[NoisySample], name: str
) -> None:
    """What the model says of the same pack, copies included, tells what is expected."""
    found, batch = ask(model, documents, guided(settings, guidance={name: 0.0}))
    with torch.no_grad():
        raw = model(batch)
    num_slots = sum(len(d.tokens) for d in documents)
    own, other = slots_of(documents)
    for each, field in VALUES.items():
        expected = getattr(raw, field).clone()
        if each == name:
            expected[own] = expected[num_slots + other]
        assert torch.equal(getattr(found, field), expected[:num_slots]), each
    velocity, moving = raw.velocity[0].clone(), moving_of(documents)
    if name == "image":
        velocity[: len(moving)][moving] = velocity[len(moving) :]
    assert torch.equal(found.velocity[0], velocity[: len(moving)])


# Other weights.


@pytest.mark.parametrize("weight", [-0.5, 0.3, 2.0, 5.0])
@pytest.mark.parametrize("name", TEXT)
def test_text_goes_on_from_what_is_said_without_the_prompt(
    model: OneFlow, settings: Config, documents: list[NoisySample], name: str, weight: float
) -> None:
    """In open slots of documents that have a prompt; copies and documents in packs of their own say the same."""
    found, _ = ask(model, documents, guided(settings, guidance={name: weight}))
    c, u = (getattr(plain(model, samples), VALUES[name]) for samples in (documents, untold(documents)))
    own, other = slots_of(documents)
    expected = c.clone()
    expected[own] = u[other] + weight * (c[own] - u[other])
    torch.testing.assert_close(getattr(found, VALUES[name]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.3, 2.0, 5.0])
def test_velocities_go_on_from_those_of_the_moving_images_alone(
    model: OneFlow, settings: Config, documents: list[NoisySample], weight: float
) -> None:
    found, _ = ask(model, documents, guided(settings, guidance={"image": weight}))
    c, u = plain(model, documents).velocity[0], plain(model, moving_copies(documents)).velocity[0]
    moving = torch.from_numpy(moving_of(documents))
    expected = c.clone()
    expected[moving] = u + weight * (c[moving] - u)
    torch.testing.assert_close(found.velocity[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.velocity[0][~moving], expected[~moving])  # given images


def test_guided_tokens_are_the_geometric_mixture_of_two_distributions(
    model: OneFlow, settings: Config, documents: list[NoisySample]
) -> None:
    """Q ~ Q(c)^w Q(u)^(1 - w): what is mixed is hidden rows, of which logits are linear."""
    found, _ = ask(model, documents, guided(settings, guidance={"tokens": 2.0}))
    own, other = slots_of(documents)
    with torch.no_grad():
        logits = model.bag_logits(found.slot_hidden)[own].log_softmax(-1)
        c = model.bag_logits(plain(model, documents).slot_hidden)[own].log_softmax(-1)
        u = model.bag_logits(plain(model, untold(documents)).slot_hidden)[other].log_softmax(-1)
    torch.testing.assert_close(logits, (2.0 * c - u).log_softmax(-1), atol=1e-3, rtol=1e-3)


def test_the_copy_without_its_prompt_has_a_first_token_for_each_stretch_of_it(
    model: OneFlow, settings: Config, documents: list[NoisySample], tokenizer: Tokenizer
) -> None:
    """All copies are in one pack: first those without a prompt, then those of moving images."""
    weights = {"gate": 2.0, "image": 2.0}
    _, batch = ask(model, documents, guided(settings, guidance=weights))
    image = tokenizer.piece_of["image"]
    bos = tokenizer.bos
    copies = [batch.tokens[batch.token_sequence == n].tolist() for n in range(5, batch.counts.sequences)]
    assert copies == [
        [bos, bos, 65],
        [bos, bos, 65, image, bos],
        [bos, bos, 65, bos, 66, bos],
        [bos, image],
        [bos, image],
    ]
    assert batch.text_time[5:].tolist() == pytest.approx([0.4, 0.4, 0.4, 1.0, 1.0])


def test_free_text_has_no_prompt_to_be_compared_with(
    model: OneFlow, settings: Config, documents: list[NoisySample]
) -> None:
    found, batch = ask(model, documents[:1], guided(settings, guidance={"gate": 3.0, "tokens": 3.0}))
    assert batch.counts.sequences == 1
    assert torch.equal(found.zero_logit, plain(model, documents[:1]).zero_logit)


# A part of the times.


@pytest.mark.parametrize(
    ("first", "last", "is_guided"), [(0.0, 1.0, True), (0.3, 0.3, True), (0.0, 0.2, False), (0.4, 1.0, False)]
)
def test_velocities_are_guided_within_an_interval_of_times(
    model: OneFlow, settings: Config, documents: list[NoisySample], first: float, last: float, is_guided: bool
) -> None:
    sampling = guided(settings, guidance={"image": 3.0}, guidance_from=first, guidance_until=last)
    found, batch = ask(model, documents, sampling)
    assert batch.counts.sequences == len(documents) + 2 * is_guided
    assert torch.equal(found.velocity[0], plain(model, documents).velocity[0]) != is_guided


# The weak model of entropy-rectifying guidance.


def test_entropy_guidance_compares_with_the_whole_document_seen_by_softer_attention(
    model: OneFlow, settings: Config, documents: list[NoisySample]
) -> None:
    sampling = guided(settings, guidance={"image": 3.0}, weak_model="entropy", weak_temperature=2.5)
    found, batch = ask(model, documents, sampling)
    assert batch.counts.sequences == len(documents) + 2
    c = plain(model, documents).velocity[0]
    soft = [replace(document, attention_scale=0.4) for document in documents if document.has_moving]
    of_soft = torch.from_numpy(moving_of(soft))
    u, moving = plain(model, soft).velocity[0][of_soft], torch.from_numpy(moving_of(documents))
    torch.testing.assert_close(found.velocity[0][moving], u + 3.0 * (c[moving] - u), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(u, c[moving], atol=1e-3)


def test_softer_attention_is_that_of_smaller_queries(
    settings: Config, make_model: Maker, documents: list[NoisySample]
) -> None:
    model = make_model(settings)
    soft = plain(model, [replace(document, attention_scale=0.4) for document in documents])
    group, width = model.blocks[0].attention.group, model.head_width  # type: ignore[union-attr]
    with torch.no_grad():
        for block in model.blocks:
            heads = block.attention.qkv.weight.view(-1, group + 2, width, settings.model.width)  # type: ignore[union-attr]
            heads[:, :group] *= 0.4
    expected = plain(model, documents)
    torch.testing.assert_close(soft.velocity[0], expected.velocity[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(soft.zero_logit, expected.zero_logit, atol=1e-5, rtol=1e-4)
