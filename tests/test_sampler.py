from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist import sampler
from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import PackedBatch, Pieces, Prediction
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw
from oneflow_dist.forward import Forward
from oneflow_dist.model.axis import Axis
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.sampler import Step, generate, generate_steps
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.training import build_model
from oneflow_dist.writers.writer import Change, step_size
from oneflow_kernels.reference_bag import gumbel
from tests.launching import Launcher
from tests.messages import Message, naming
from tests.modalities import SOUND, UNET, VIDEO, VISION

Maker = Callable[..., OneFlow]
PAINT = ("image", None)


class Scripted(OneFlow):
    """A model that says what a test wants: in every slot a token is missing with probability one or never."""

    zero_logit = -40.0
    log_rate = 3.0
    image_logit = 0.0
    velocity = 1.0
    image_token = 0
    other_pieces: Sequence[int] = ()  # as likely as an image
    seen: list[PackedBatch]

    def forward(self, batch: PackedBatch) -> Prediction:
        self.seen = [*getattr(self, "seen", []), batch]
        num_slots = len(batch.tokens)
        return Prediction(
            zero_logit=torch.full((num_slots,), self.zero_logit),
            log_rate=torch.full((num_slots,), self.log_rate),
            bag_loss=torch.zeros(()),
            velocity=tuple(torch.full_like(pieces.velocity, self.velocity) for pieces in batch.pieces),
            slot_hidden=torch.zeros(num_slots, self.embed.embedding_dim),
        )

    def bag_logits(self, slot_hidden: Tensor) -> Tensor:
        logits = torch.full((len(slot_hidden), self.embed.num_embeddings), -40.0)
        logits[:, 65:91] = 0.0
        logits[:, [self.image_token, *self.other_pieces]] = self.image_logit
        return logits

    def draw_tokens(self, slot_hidden: Tensor, noise_key: Tensor, temperature: float, limit: int) -> Tensor:
        logits = self.bag_logits(slot_hidden)[:, :limit] / temperature
        return (logits + gumbel(noise_key, torch.arange(limit))).argmax(-1)


@pytest.fixture
def scripted(config: Config, tokenizer: Tokenizer) -> Scripted:
    model = Scripted(config)
    model.image_token = tokenizer.piece_of["image"]
    return model


@pytest.fixture
def make_writer(make_model: Maker) -> Maker:
    """A model with random weights that writes: slots are filled with probability .9, and by two tokens or more."""

    def make(config: Config) -> OneFlow:
        model = make_model(config)
        with torch.no_grad():
            model.heads.zero.weight *= 0.1
            model.heads.rate.weight *= 0.1
            model.heads.zero.bias.fill_(-2.2)
            model.heads.rate.bias.fill_(0.7)
        return model

    return make


def sampling(steps: int = 6, **changes: Any) -> SamplingConfig:
    plain = {"guidance": {}, "temperature": 1.0, "top_p": 1.0, "max_rows": 512}
    return SamplingConfig(every_steps=0, prompts=(), steps=steps, **plain | changes)  # type: ignore[arg-type]


def settings(config: Config, steps: int = 6, **changes: Any) -> Config:
    return replace(config, sampling=sampling(steps, **changes))


@pytest.fixture
def canvases(config: Config, tokenizer: Tokenizer) -> list[Canvas]:
    return make_canvases(config, tokenizer)


def make_canvases(config: Config, tokenizer: Tokenizer) -> list[Canvas]:
    """Free, with a prompt, an image to paint, a given image, a wide one with one to paint beside it, and with holes."""
    given = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    first, wide = ("image", given), ("image", given.reshape(1, 4, 16))
    prompts: list[Prompt] = [[], [5, 6, 7], [5, PAINT], [first], [wide, 9, PAINT, 8, ...], [..., PAINT, 9, ...]]
    return [blank_canvas(prompt, tokenizer, config.modality, 1, index) for index, prompt in enumerate(prompts)]


def images_of(canvas: Canvas) -> Pieces:
    return canvas.making["image"].pieces


State = tuple[list[int], list[int], dict[str, list[float]], dict[str, list[bool]]]


def state(canvas: Canvas) -> State:
    times = {kind: making.pieces.time.tolist() for kind, making in canvas.making.items()}
    are_targets = {kind: making.is_target.tolist() for kind, making in canvas.making.items()}
    return canvas.tokens.tolist(), canvas.born.tolist(), times, are_targets


# Whole generations.


@pytest.mark.parametrize("conditioning", ["none", "token", "adaln"])
@pytest.mark.parametrize("guidance", [{}, {"image": 2.0, "gate": 1.5, "rate": 2.0, "tokens": 3.0}])
def test_every_document_is_finished(
    make_config: Callable[..., Config],
    make_writer: Maker,
    tokenizer: Tokenizer,
    canvases: list[Canvas],
    conditioning: str,
    guidance: dict[str, float],
) -> None:
    config = make_config(f"heads.time_conditioning={conditioning}")
    done = generate(make_writer(config), canvases, settings(config, guidance=guidance), tokenizer)
    assert done == canvases
    for canvas in canvases:
        assert canvas.is_done
        assert canvas.text_time == pytest.approx(1.0)
        np.testing.assert_allclose(images_of(canvas).time, 1.0)
        assert np.isfinite(images_of(canvas).patches).all()
        assert (canvas.tokens[images_of(canvas).token] == tokenizer.piece_of["image"]).all()
        assert len(canvas.tokens) == len(canvas.born) == len(canvas.is_open)
        canvas.parts(tokenizer)
    assert any(len(canvas.tokens) > 10 for canvas in canvases)


def test_prompts_are_untouched(
    config: Config, make_writer: Maker, tokenizer: Tokenizer, canvases: list[Canvas]
) -> None:
    before = [canvas.copy() for canvas in canvases]
    generate(make_writer(config), canvases, settings(config, guidance={"image": 2.0}), tokenizer)
    for old, new in zip(before, canvases, strict=True):
        was_there = new.born == 0
        assert new.tokens[was_there].tolist() == old.tokens.tolist()
        assert new.num_rows > old.num_rows or old is before[2]
        places = zip(new.latents("image"), images_of(new).token, strict=True)
        given = [latent for latent, place in places if was_there[place]]
        for latent, same, is_target in zip(old.latents("image"), given, old.making["image"].is_target, strict=True):
            assert latent.shape == same.shape
            assert is_target or np.array_equal(latent, same)
    assert len(canvases[2].tokens) == 3  # nothing is written after an image that was asked for


def test_a_document_does_not_depend_on_its_company(
    config: Config, make_writer: Maker, tokenizer: Tokenizer, canvases: list[Canvas]
) -> None:
    model = make_writer(config)
    alone = [replace(canvas, rng=_same_state(canvas.rng)) for canvas in canvases]
    generate(model, canvases, settings(config, guidance={"image": 2.0}), tokenizer)
    for canvas in alone:
        generate(model, [canvas], settings(config, guidance={"image": 2.0}), tokenizer)
    for together, single in zip(canvases, alone, strict=True):
        assert state(single) == state(together)
        np.testing.assert_allclose(images_of(single).patches, images_of(together).patches, atol=1e-4)


def _same_state(rng: np.random.Generator) -> np.random.Generator:
    bit_generator = np.random.Philox()
    bit_generator.state = rng.bit_generator.state
    return np.random.Generator(bit_generator)


KINDS = {
    "insertion": (),
    "autoregressive": ("objective.kind=autoregressive", "heads.time_conditioning=none"),
    "masked": ("objective.kind=masked", "heads.time_conditioning=none", "objective.canvas_tokens=6"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_that_come_and_go_are_written_as_alone(
    kind: str, make_config: Callable[..., Config], make_model: Maker
) -> None:
    """Each with settings of its own, one of them taken away half done: what they say does not change."""
    config = make_config(*KINDS[kind])
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    model = make_model(config, noise=0.05).double()
    own = [
        sampling(5, max_rows=40),
        sampling(8, max_rows=40, temperature=0.7, guidance={"image": 3.0, "tokens": 2.0}),
        sampling(8, max_rows=40, top_p=0.8, guidance={"tokens": 1.5}),
        sampling(5, max_rows=40),
    ]
    prompts: list[Prompt] = [[], [5, 6], [7, 8, 9], [5, PAINT]]

    def blank(number: int) -> Canvas:
        return blank_canvas(prompts[number], tokenizer, config.modality, 3, number)

    alone = [
        generate(model, [blank(number)], replace(config, sampling=own[number]), tokenizer)[0] for number in range(4)
    ]
    together, canvases = sampler.Sampler(model, config, tokenizer), [blank(number) for number in range(4)]
    joins, changed = {0: [0, 3], 1: [1], 4: [2]}, []
    for step in range(200):
        for number in joins.get(step, []):
            together.add(number, canvases[number], own[number])
        if step == 3:
            together.remove(3)
        if not together.writes:
            break
        changed.append(set(together.step().changes))
    assert changed[0] == {0, 3}
    assert 3 not in set().union(*changed[3:])
    assert not canvases[3].is_done
    for one, other in zip(alone[:3], canvases[:3], strict=True):
        assert state(one)[:2] == state(other)[:2]
        assert np.allclose(images_of(one).patches, images_of(other).patches, atol=1e-5)


def test_documents_that_are_refused_or_done_leave_nothing_behind(
    config: Config, make_writer: Maker, tokenizer: Tokenizer
) -> None:
    together = sampler.Sampler(make_writer(config), config, tokenizer)
    refused = blank_canvas([5, PAINT], tokenizer, config.modality, 0, 0)
    for number in range(3):
        with pytest.raises(ValueError, match=naming("sampling.blocks")):
            together.add(number, refused, sampling(5, blocks=2 + number))
        done = blank_canvas([5], tokenizer, config.modality, 0, number)
        done.text_time = 1.0
        together.add(number, done, sampling(6 + number))
    assert not together.writes
    assert not together._writers


def test_documents_may_go_through_several_forwards(
    config: Config,
    make_writer: Maker,
    tokenizer: Tokenizer,
    canvases: list[Canvas],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_writer(config)
    again = [replace(canvas, rng=_same_state(canvas.rng)) for canvas in canvases]
    generate(model, canvases, settings(config), tokenizer)
    monkeypatch.setattr(sampler, "PACK_ROWS", 12)
    generate(model, again, settings(config), tokenizer)
    assert [state(canvas) for canvas in again] == [state(canvas) for canvas in canvases]


def test_forwards_are_no_larger_than_asked(
    config: Config,
    scripted: Scripted,
    tokenizer: Tokenizer,
    canvases: list[Canvas],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.zero_logit = 40.0
    rows = [canvas.num_rows for canvas in canvases]
    monkeypatch.setattr(sampler, "PACK_ROWS", 12)
    generate(scripted, canvases, settings(config, 1), tokenizer)
    assert rows == [1, 4, 7, 6, 13, 7]
    assert [batch.counts.rows for batch in scripted.seen] == [12, 6, 13, 7]


def test_the_same_seed_gives_the_same_document(config: Config, make_writer: Maker, tokenizer: Tokenizer) -> None:
    model = make_writer(config)

    def run(seed: int) -> list[int]:
        canvas = blank_canvas([], tokenizer, config.modality, seed, 0)
        return generate(model, [canvas], settings(config), tokenizer)[0].tokens.tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_generation_leaves_the_model_as_it_was(
    config: Config, make_writer: Maker, tokenizer: Tokenizer, canvases: list[Canvas]
) -> None:
    model = make_writer(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    generate(model, canvases, settings(config, 2), tokenizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad, name


# Steps and clocks.


def test_with_even_steps_text_is_done_after_n_and_an_image_n_after_its_birth(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    """Images of the last text step are done at 2N."""
    even = settings(config, 4, max_rows=4096, time_power=1.0)
    scripted.image_logit = 3.5
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    ends: dict[int, set[int]] = defaultdict(set)
    steps = []
    for step in (step.number for step in generate_steps(scripted, [canvas], even, tokenizer)):
        steps.append(step)
        assert canvas.is_writing == (step < 4)
        born = canvas.born[images_of(canvas).token]
        for birth, is_moving in zip(born, canvas.making["image"].is_moving, strict=True):
            if not is_moving:
                ends[int(birth)].add(step)
    assert steps == list(range(1, max(ends) + 5))
    assert len(ends) >= 3
    assert all(min(done) == birth + 4 for birth, done in ends.items())
    assert canvas.making["image"].end.tolist() == (canvas.born[images_of(canvas).token] + 4).tolist()


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("num_steps", [1, 7, 40, 1000])
def test_text_times_are_those_of_the_grid(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, power: float, num_steps: int
) -> None:
    scripted.zero_logit = 40.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    own = settings(config, num_steps, time_power=power)
    times = [canvas.text_time for _ in generate_steps(scripted, [canvas], own, tokenizer)]
    np.testing.assert_allclose(times, 1.0 - (1.0 - np.arange(1, num_steps + 1) / num_steps) ** power, atol=1e-9)


def test_with_smaller_late_steps_images_end_after_n_steps_and_by_2n(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    scripted.image_logit = 3.5
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    assert generate(scripted, [canvas], settings(config, 9, max_rows=4096), tokenizer) == [canvas]
    end, born = canvas.making["image"].end, canvas.born[images_of(canvas).token]
    assert len(set(born.tolist())) >= 5
    assert (end - born).min() >= 9
    assert end.max() <= 18


def test_at_most_one_token_per_slot_and_step(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    """Where every slot fires the number of tokens doubles."""
    scripted.image_logit = -40.0
    scripted.log_rate = 5.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    own = settings(config, 5)
    lengths = [len(canvas.tokens) for _ in generate_steps(scripted, [canvas], own, tokenizer)]
    assert lengths == [2, 4, 8, 16, 32]


def test_closed_slots_never_fire(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    scripted.image_logit = -40.0
    scripted.log_rate = 5.0
    canvas = blank_canvas([1, 2, 3], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 3), tokenizer)
    assert canvas.tokens[:4].tolist() == [tokenizer.bos, 1, 2, 3]
    assert len(canvas.tokens) == 4 + 1 + 2 + 4


def test_nothing_is_written_where_nothing_is_missing(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    scripted.zero_logit = 40.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 3), tokenizer)
    assert canvas.tokens.tolist() == [tokenizer.bos]


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_an_image_moves_along_the_velocity_for_one_unit_of_time(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, num_steps: int
) -> None:
    canvas = blank_canvas([PAINT], tokenizer, config.modality, 1, 0)
    start = images_of(canvas).patches
    scripted.velocity = 0.75
    assert list(generate_steps(scripted, [canvas], settings(config, num_steps), tokenizer))[-1].number == num_steps
    np.testing.assert_allclose(images_of(canvas).patches, start + 0.75, atol=1e-5)


def test_beside_a_prompt_image_of_another_shape_images_of_the_configs_shape_are_painted(
    config: Config, make_writer: Maker, tokenizer: Tokenizer
) -> None:
    given = np.linspace(-1, 1, 96, dtype=np.float32).reshape(1, 8, 12)
    canvas = blank_canvas([("image", given), 9, PAINT, 8], tokenizer, config.modality, 1, 0)
    generate(make_writer(config), [canvas], settings(config, max_rows=200), tokenizer)
    assert canvas.is_done
    first, *others = canvas.latents("image")
    np.testing.assert_array_equal(first, given)
    assert len(others) >= 1
    assert all(latent.shape == (1, 8, 8) for latent in others)
    assert canvas.num_rows == len(canvas.tokens) + 6 + 4 * len(others)


# The rate.


@pytest.mark.parametrize("log_rate", [-30.0, -0.5, 0.0])
def test_in_the_last_step_whatever_is_missing_comes(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, log_rate: float
) -> None:
    """Where a token is missing, one or more are: a head that says less must not lose it."""
    scripted.log_rate, scripted.image_logit = log_rate, -40.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 1), tokenizer)
    assert len(canvas.tokens) == 2


@pytest.mark.parametrize("log_rate", [88.8, 1e4, 3e38])
def test_rates_of_any_size_let_slots_fire(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, log_rate: float
) -> None:
    scripted.log_rate, scripted.image_logit = log_rate, -40.0
    canvas = (
        blank_canvas([5, PAINT], tokenizer, config.modality, 1, 0),
        blank_canvas([], tokenizer, config.modality, 1, 1),
    )
    generate(scripted, list(canvas), settings(config, 4), tokenizer)
    assert len(canvas[0].tokens) == 3  # all of its slots are closed
    assert len(canvas[1].tokens) > 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["zero_logit", "log_rate", "velocity"])
def test_what_is_not_finite_ends_with_an_error_and_leaves_the_documents_as_they_were(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, canvases: list[Canvas], name: str, bad: float
) -> None:
    steps = generate_steps(scripted, canvases, settings(config, 9), tokenizer)
    next(steps)
    before = [state(canvas) for canvas in canvases]
    setattr(scripted, name, bad)
    with pytest.raises(FloatingPointError) as error:
        next(steps)
    assert Message(error.value) == (
        f"sampling step 2: {name}{' of image' * (name == 'velocity')} of the model is not finite; its weights are "
        "broken, or too large for the dtype of its products: take an earlier checkpoint"
    )
    assert [state(canvas) for canvas in canvases] == before


# One draw for all slots of a document.


def test_a_document_takes_one_number_for_all_its_slots(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    scripted.zero_logit = 40.0
    canvas = blank_canvas([5, ..., 6, ...], tokenizer, config.modality, 1, 0)
    twin = _same_state(canvas.rng)
    next(generate_steps(scripted, [canvas], settings(config, 9), tokenizer))
    twin.random()
    assert canvas.rng.random() == twin.random()


# Corrections.


def test_a_finished_text_is_taken_back_and_written_on_as_often_as_asked(
    config: Config, make_writer: Maker, tokenizer: Tokenizer
) -> None:
    """Of 8 even steps the last 4 are made again for each correction; what was given stays."""
    own = settings(config, 8, time_power=1.0, corrections=2, corrected_from=0.5)
    canvas = blank_canvas([5, 6, ...], tokenizer, config.modality, 1, 0)
    most = canvas.steps_left(own.sampling)
    assert most == 8 + 2 * 4 + 8
    steps = list(generate_steps(make_writer(config), [canvas], own, tokenizer))
    assert canvas.corrections == 2
    assert len(canvas.lengths) == 8 + 2 * 4
    assert len(canvas.lengths) <= len(steps) <= most
    assert canvas.tokens[:3].tolist() == [tokenizer.bos, 5, 6]
    assert canvas.is_done
    assert (canvas.tokens[images_of(canvas).token] == tokenizer.piece_of["image"]).all()


def test_going_back_keeps_tokens_by_their_chance_and_pieces_that_are_old_enough(
    config: Config, tokenizer: Tokenizer
) -> None:
    image = tokenizer.piece_of["image"]
    canvas = blank_canvas([5, ...], tokenizer, config.modality, 1, 0)
    for step, (text_time, token) in enumerate([(0.2, image), (0.7, image), (1.0, 65)], start=1):
        canvas.advance([np.zeros_like(images_of(canvas).patches)], text_time - canvas.text_time, sampling(4), step)
        canvas.insert(np.array([1]), np.array([token]), step)
    before = canvas.copy()
    kept = 0
    for _ in range(400):
        again = before.copy()
        again.rewind(0.4, KeepSchedule())
        assert again.tokens[:2].tolist() == [tokenizer.bos, 5]
        (piece,) = images_of(again).token.tolist()  # the one of .2; that of .7 was not there yet
        assert again.tokens[piece] == image
        assert images_of(again).time.tolist() == pytest.approx([0.2])
        kept += int((again.tokens == 65).sum())
    assert abs(kept / 400 - 0.4) < 5 * math.sqrt(0.24 / 400)
    assert len(images_of(before)) == 2


# What each step changed.


def replay(tokens: list[int], changes: list[Change]) -> list[int]:
    for change in changes:
        for place, token in zip(change.place.tolist(), change.token.tolist(), strict=True):
            tokens.insert(place, token)
        tokens = [token for place, token in enumerate(tokens) if place not in change.removed.tolist()]
    return tokens


def test_changes_replay_a_generation(config: Config, make_writer: Maker, tokenizer: Tokenizer) -> None:
    """With tokens that corrections take back, a document that is full, and several in one pack."""
    own = settings(config, 8, corrections=2, corrected_from=0.5, max_rows=40)
    canvases = make_canvases(config, tokenizer)
    before, times = [canvas.tokens.tolist() for canvas in canvases], [canvas.text_time for canvas in canvases]
    changes: list[list[Change]] = [[] for _ in canvases]
    for number, step in enumerate(generate_steps(make_writer(config), canvases, own, tokenizer), start=1):
        assert step.number == number
        for number, change in step.changes.items():
            changes[number].append(change)
            canvas = canvases[number]
            assert change.text_time == canvas.text_time
            assert change.piece_times["image"].tolist() == np.minimum(1.0, images_of(canvas).time).tolist()
            assert (change.prob > 0.0).all()
    assert sum(len(change.removed) for of_document in changes for change in of_document) > 5
    assert any(len(of_document) != len(changes[0]) for of_document in changes)
    assert [replay(*pair) for pair in zip(before, changes, strict=True)] == [c.tokens.tolist() for c in canvases]
    assert times == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_each_token_comes_with_its_probability(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    """Of 26 letters and an image that is as likely as e of them, whatever the temperature."""
    scripted.image_logit = 1.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    own = settings(config, 6, temperature=0.7)
    changes = [
        change for step in generate_steps(scripted, [canvas], own, tokenizer) for change in step.changes.values()
    ]
    token, prob = (np.concatenate([getattr(change, name) for change in changes]) for name in ("token", "prob"))
    assert len(token) > 20
    is_image = token == scripted.image_token
    assert is_image.any()
    np.testing.assert_allclose(prob, np.where(is_image, math.e, 1.0) / (26 + math.e), rtol=1e-6)


# Block by block.


class Ending(Scripted):
    """Writes in the last slot of a document alone, until so many tokens are there."""

    last = 6

    def forward(self, batch: PackedBatch) -> Prediction:
        prediction = super().forward(batch)
        is_last = torch.ones(len(batch.tokens), dtype=torch.bool)
        is_last[:-1] = batch.token_sequence[1:] != batch.token_sequence[:-1]
        is_over = torch.bincount(batch.token_sequence)[batch.token_sequence] > self.last
        zero_logit = torch.where(is_last & ~is_over, -40.0, 40.0)
        return replace(prediction, zero_logit=zero_logit)


def write_blocks(config: Config, tokenizer: Tokenizer, blocks: int, **changes: Any) -> tuple[Canvas, list[Step]]:
    model = Ending(config)
    model.image_logit, model.log_rate = -40.0, 5.0
    own = settings(config, 2, blocks=blocks, time_power=1.0, **changes)
    canvas = blank_canvas([5, 6], tokenizer, config.modality, 1, 0)
    return canvas, list(generate_steps(model, [canvas], own, tokenizer))


def test_a_document_grows_block_by_block_and_what_is_finished_stays(config: Config, tokenizer: Tokenizer) -> None:
    canvas, steps = write_blocks(config, tokenizer, blocks=2)
    ends = [3, *canvas.block_ends[1:]]
    assert list(canvas.block_ends) == ends
    assert len(ends) == 2
    born = canvas.born.tolist()
    assert born[:3] == [0, 0, 0]
    assert all(born[place] <= 2 for place in range(3, ends[1]))
    assert all(born[place] > 2 for place in range(ends[1], len(born)))
    assert len(born) > ends[1] > 3
    assert [step.number for step in steps] == [1, 2, 3, 4]


def test_no_block_follows_an_empty_one(config: Config, tokenizer: Tokenizer) -> None:
    """Of blocks that write until seven tokens are there, the one that finds them writes nothing."""
    canvas, _ = write_blocks(config, tokenizer, blocks=50)
    assert len(canvas.tokens) == 7
    assert canvas.block_ends[-1] == 7
    assert canvas.is_done
    assert not canvas.hit_cap


def test_no_block_follows_the_end_of_a_document(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    scripted.log_rate, scripted.image_logit, scripted.image_token = 0.0, 0.5, tokenizer.eos
    canvases = [blank_canvas([5], tokenizer, config.modality, 1, index) for index in range(24)]
    generate(scripted, canvases, settings(config, 2, blocks=6, max_rows=2000), tokenizer)
    for canvas in canvases:
        ends = np.flatnonzero(canvas.tokens == tokenizer.eos)
        assert (ends >= canvas.block_ends[-1]).all()
        assert len(ends) > 0 or len(canvas.block_ends) == 6
    assert len({len(canvas.block_ends) for canvas in canvases}) > 1


def test_a_full_document_has_no_further_block(config: Config, make_writer: Maker, tokenizer: Tokenizer) -> None:
    canvas = blank_canvas([5], tokenizer, config.modality, 1, 0)
    generate(make_writer(config), [canvas], settings(config, 4, blocks=100, max_rows=30), tokenizer)
    assert canvas.num_rows <= 30
    assert canvas.hit_cap


def test_blocks_are_the_same_with_prompts_that_are_computed_once(
    make_config: Callable[..., Config], make_writer: Maker, tokenizer: Tokenizer
) -> None:
    """Text, images and what both are; and fewer rows are computed."""
    config = make_config("model.prompt_sees=prompt", "heads.time_conditioning=adaln")
    given = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    own = settings(config, 5, blocks=4, guidance={"image": 2.0, "tokens": 1.5}, max_rows=200)
    model, image = make_writer(config), tokenizer.piece_of["image"]
    model.draw_tokens = lambda _, key, *limits: torch.where(key % 3 == 0, image, 65 + key % 26)  # type: ignore[method-assign]
    found = []
    for keeps in (True, False):
        prompts: list[Prompt] = [[], [5, 6], [("image", given), 7]]
        canvases = [blank_canvas(prompt, tokenizer, config.modality, 3, n) for n, prompt in enumerate(prompts)]
        rows = sum(step.num_rows for step in generate_steps(model, canvases, own, tokenizer, keeps_rows=keeps))
        found.append((rows, canvases))
    (kept_rows, kept), (all_rows, anew) = found
    assert kept_rows < 0.7 * all_rows
    for own_canvas, other in zip(kept, anew, strict=True):
        assert own_canvas.tokens.tolist() == other.tokens.tolist()
        assert own_canvas.block_ends == other.block_ends
        one, two = images_of(own_canvas).patches, images_of(other).patches
        np.testing.assert_allclose(one, two, rtol=0.0, atol=1e-5 * max(1.0, float(np.abs(two).max(initial=0.0))))
    assert any(len(canvas.block_ends) == 4 for canvas in kept)
    assert any(len(images_of(canvas)) > 1 for canvas in kept)


@pytest.mark.parametrize("prompt", [[5, ..., 6], [5, ("image", None)], [..., ("image", None), 5, ...]])
def test_blocks_are_refused_where_something_is_made_before_the_end(
    config: Config, scripted: Scripted, tokenizer: Tokenizer, prompt: Prompt
) -> None:
    canvas = blank_canvas(prompt, tokenizer, config.modality, 1, 0)
    with pytest.raises(ValueError, match=naming("sampling.blocks", 3)):
        generate(scripted, [canvas], settings(config, 2, blocks=3), tokenizer)


def test_two_documents_of_one_key_are_refused(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    canvases = [blank_canvas([], tokenizer, config.modality, 1, 4) for _ in range(2)]
    with pytest.raises(ValueError, match=naming("canvas-4")):
        generate(scripted, canvases, settings(config, 2), tokenizer)


# The expected length.


def test_the_expected_length_is_what_is_there_and_what_the_heads_miss(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    """In open slots, each with a chance of a half for e^2 tokens; nothing is expected of a text that is done."""
    scripted.zero_logit, scripted.log_rate, scripted.image_logit = 0.0, 2.0, -40.0
    canvas = blank_canvas([5, ..., 6, ...], tokenizer, config.modality, 1, 0)
    painted = blank_canvas([5, PAINT], tokenizer, config.modality, 1, 1)
    assert (canvas.expected_length, painted.expected_length) == (3.0, 3.0)
    next(generate_steps(scripted, [canvas, painted], settings(config, 9), tokenizer))
    assert canvas.lengths == ((3, pytest.approx(3 + 2 * 0.5 * math.exp(2.0))),)
    assert canvas.expected_length == canvas.lengths[0][1]
    assert painted.lengths == ()
    generate(scripted, [canvas, painted], settings(config, 9), tokenizer)
    assert len(canvas.lengths) == 9
    assert canvas.expected_length == len(canvas.tokens)


# The cap.


def test_a_full_document_says_so_and_stays_within_its_rows(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 8, max_rows=20), tokenizer)
    assert canvas.hit_cap
    assert canvas.is_done
    assert 15 < canvas.num_rows <= 20


def test_text_fills_all_rows_though_any_token_could_have_been_an_image(
    config: Config, scripted: Scripted, tokenizer: Tokenizer
) -> None:
    scripted.image_logit = -40.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 12, max_rows=101), tokenizer)
    assert canvas.num_rows == len(canvas.tokens) == 101


def test_a_document_with_room_reports_no_cap(config: Config, scripted: Scripted, tokenizer: Tokenizer) -> None:
    scripted.image_logit = -40.0
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(scripted, [canvas], settings(config, 3, max_rows=512), tokenizer)
    assert not canvas.hit_cap


# Pieces of several modalities.


@pytest.fixture(scope="module")
def kinds(make_config: Callable[..., Config]) -> Config:
    """Images by a U-Net in modulated blocks, sounds, videos, and what pictures look like."""
    return make_config("model.vocab_size=600", *UNET, *SOUND, *VIDEO, *VISION)


@pytest.fixture(scope="module")
def tokens_of(kinds: Config) -> Tokenizer:
    return load_tokenizer(kinds.data.tokenizer, kinds.modality)


NUM_BLANK = 12  # documents written from nothing, in which a random model writes some pieces of each kind


def look(value: float) -> tuple[str, np.ndarray]:
    return "vision", np.full((3, 4, 4), value, dtype=np.float32)


def test_a_random_model_finishes_documents_of_all_kinds_of_pieces(
    kinds: Config, tokens_of: Tokenizer, make_writer: Maker
) -> None:
    """Given, asked for and written; what is only given is never written."""
    model = make_writer(kinds)
    assert model.unembed is not None
    with torch.no_grad():
        model.unembed.weight[list(tokens_of.piece_of.values())] *= 5.0
    sound = ("sound", np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6))
    with_given: list[Prompt] = [[look(1.0), 5, ("video", None), ...], [sound, ..., PAINT, ("sound", None), 7]]
    prompts: list[Prompt] = [*with_given, *[[]] * NUM_BLANK]
    canvases = [blank_canvas(prompt, tokens_of, kinds.modality, 1, n) for n, prompt in enumerate(prompts)]
    assert generate(model, canvases, settings(kinds, 12, guidance={"image": 2.0}), tokens_of) == canvases
    for canvas in canvases:
        assert canvas.is_done
        for kind, making in canvas.making.items():
            np.testing.assert_allclose(making.pieces.time, 1.0)
            assert np.isfinite(making.pieces.patches).all()
            assert np.flatnonzero(canvas.tokens == tokens_of.piece_of[kind]).tolist() == making.pieces.token.tolist()
            is_new = canvas.born[making.pieces.token] > 0
            assert making.is_target[is_new].all()
            assert (making.end[making.is_target] > 0).all()
    born = {kind: [c.born[c.making[kind].pieces.token] for c in canvases] for kind in kinds.modality}
    written = {kind: int((np.concatenate(steps) > 0).sum()) for kind, steps in born.items()}
    assert min(written.pop(kind) for kind in ("image", "sound", "video")) > 2
    assert written == {"vision": 0}
    assert [len(canvas.making["vision"].pieces) for canvas in canvases] == [1, 0, *[0] * NUM_BLANK]
    np.testing.assert_array_equal(canvases[0].latents("vision")[0], look(1.0)[1])
    np.testing.assert_array_equal(canvases[1].latents("sound")[0], sound[1])


class InCompany(Scripted):
    """The velocity of a patch is the number of tokens in its sequence, times the number of its modality from 1 on."""

    def forward(self, batch: PackedBatch) -> Prediction:
        lengths = torch.bincount(batch.token_sequence).float()
        velocity = []
        for number, pieces in enumerate(batch.pieces, start=1):
            sequence = torch.searchsorted(batch.cu_seqlens.long(), pieces.patch_row, right=True) - 1
            velocity.append(number * lengths[sequence][:, None].expand_as(pieces.velocity))
        return replace(super().forward(batch), velocity=tuple(velocity))


def test_pieces_of_each_modality_are_guided_by_their_own_velocities(kinds: Config, tokens_of: Tokenizer) -> None:
    """Of each document that which moves, with BOS: of five tokens and three in one, of four and two in the other."""
    model = InCompany(kinds)
    model.zero_logit = 40.0
    sound = ("sound", np.zeros((2, 6), dtype=np.float32))
    prompts: list[Prompt] = [[sound, PAINT, ("sound", None), 5, ...], [], [look(0.0), ("sound", None), 5, ...]]
    canvases = [blank_canvas(prompt, tokens_of, kinds.modality, 1, n) for n, prompt in enumerate(prompts)]
    before = [{kind: c.latents(kind) for kind in kinds.modality} for c in canvases]
    sizes = [step_size(canvas, sampling(4)) for canvas in canvases]
    next(generate_steps(model, canvases, settings(kinds, 4, guidance={"image": 3.0, "sound": 3.0}), tokens_of))
    (batch,) = model.seen
    assert batch.counts.sequences == 3 + 2
    assert batch.counts.text_tokens == (5 + 1 + 4) + (3 + 2)
    sound_number = 1 + list(kinds.modality).index("sound")
    for document, kind, piece, velocity in (
        (0, "image", 0, 3 + 3.0 * (5 - 3)),
        (0, "sound", 1, sound_number * (3 + 3.0 * (5 - 3))),
        (2, "sound", 0, sound_number * (2 + 3.0 * (4 - 2))),
        (0, "sound", 0, 0.0),  # given
        (2, "vision", 0, 0.0),
    ):
        now, then = canvases[document].latents(kind)[piece], before[document][kind][piece]
        np.testing.assert_allclose(now - then, sizes[document] * velocity, atol=1e-4)


def test_pieces_of_each_modality_end_n_steps_after_their_birth(kinds: Config, tokens_of: Tokenizer) -> None:
    """With even steps; a shift for larger pieces changes their times on the way, and not how many steps they take."""
    shifted = replace(kinds.modality["image"], shift_rows=1)
    config = replace(kinds, modality={**kinds.modality, "image": shifted})
    law, even = TimeLaw.of(shifted), settings(config, 5, time_power=1.0, max_rows=4096)
    model = Scripted(config)
    model.other_pieces = [tokens_of.piece_of[kind] for kind in ("sound", "video")]
    model.image_token, model.image_logit = tokens_of.piece_of["image"], 3.5
    canvas = blank_canvas([PAINT, ...], tokens_of, config.modality, 3, 0)
    start = images_of(canvas).patches[:4]
    for step in (step.number for step in generate_steps(model, [canvas], even, tokens_of)):
        for kind, making in canvas.making.items():
            clock = np.minimum(1.0, (step - canvas.born[making.pieces.token]) / 5)
            expected = law.at_clock(clock, making.pieces) if kind == "image" else clock
            np.testing.assert_allclose(making.pieces.time, expected, atol=1e-9)
    for kind in ("image", "sound", "video"):
        making = canvas.making[kind]
        born = canvas.born[making.pieces.token]
        assert len(set(born.tolist())) >= 3, (kind, born)
        assert making.end.tolist() == (born + 5).tolist(), kind
    np.testing.assert_allclose(images_of(canvas).patches[:4], start + 1.0, atol=1e-5)


def test_what_a_given_picture_looks_like_is_seen(kinds: Config, tokens_of: Tokenizer, make_model: Maker) -> None:
    """The same noise, beside two looks."""
    model = make_model(kinds)
    found = []
    for value in (0.0, 1.0):
        canvas = blank_canvas([look(value), 5, PAINT], tokens_of, kinds.modality, 1, 0)
        generate(model, [canvas], settings(kinds, 2), tokens_of)
        np.testing.assert_array_equal(canvas.latents("vision")[0], look(value)[1])
        found.append(canvas.latents("image")[0])
    assert not np.isclose(*found).any()


def test_only_tokens_of_the_tokenizer_are_written(config: Config, tokenizer: Tokenizer) -> None:
    """The model has room for more; a new one finds all of them alike."""

    class Undecided(Scripted):
        def bag_logits(self, slot_hidden: Tensor) -> Tensor:
            return torch.zeros(len(slot_hidden), self.embed.num_embeddings)

    assert tokenizer.vocab_size < config.model.vocab_size
    canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
    generate(Undecided(config), [canvas], settings(config, 8, max_rows=400), tokenizer)
    assert len(canvas.tokens) > 60
    assert canvas.tokens.max() < tokenizer.vocab_size


def test_packs_are_padded_to_rows_that_ranks_can_share(canvases: list[Canvas], scripted: Scripted) -> None:
    snapshots = [canvas.snapshot() for canvas in canvases]
    num_rows = sum(canvas.num_rows for canvas in canvases)
    assert num_rows == 38
    for multiple, padded in ((1, 38), (2, 38), (4, 40), (19, 38), (8, 40), (5, 40)):
        scripted.axis = Axis(size=multiple)
        batch = Forward(scripted, "all")._pack_evenly(snapshots)
        assert (len(batch.position), batch.counts.rows) == (padded, num_rows)
        assert len(batch.tokens) == sum(len(s.tokens) for s in snapshots)
        assert batch.cu_seqlens[-1] == padded


Written = list[tuple[list[Canvas], list[tuple[int, int]]]]  # documents; rows of each forward, as they are and padded
# Settings, and rows of a forward.
GUIDED = {"guidance": {"image": 2.0, "gate": 1.2, "tokens": 1.5}}
WAYS = (({}, sampler.PACK_ROWS), ({**GUIDED, "temperature": 0.8, "top_p": 0.9}, 24))


@torch.no_grad()
def make_write(model: OneFlow, image_token: int) -> None:
    """As `make_writer` but the same on all layouts; some slots very much want images."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name in ("heads.zero.bias", "heads.rate.bias"):
            parameter.fill_({"heads.zero.bias": -2.2, "heads.rate.bias": 1.6}[name])
            continue
        scale = 0.02 if name.startswith(("heads.zero", "heads.rate")) else 0.2
        noise = scale * torch.randn(parameter.shape, generator=generator)
        if name == "unembed.weight":
            noise[image_token] *= 5.0
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter += noise


def write_on_ranks(config_path: str, overrides: list[str]) -> Written:
    """The documents of each of WAYS."""
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    make_write(model, tokenizer.piece_of["image"])
    rows: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, inputs: rows.append((int(inputs[0].cu_seqlens[len(inputs[0].text_time)]), len(inputs[0].position)))
    )
    found = []
    for way, sampler.PACK_ROWS in WAYS:
        rows.clear()
        canvases = generate(model, make_canvases(config, tokenizer), settings(config, **way), tokenizer)
        found.append((canvases, list(rows)))
    return found


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sampler") / "config.toml"
    path.write_text(write_config(make_config("model.num_attention_heads=8", "model.num_kv_heads=4")))
    return str(path)


@pytest.fixture(scope="module")
def written_alone(launcher: Launcher, config_path: str) -> Written:
    (found,) = launcher.call(1, write_on_ranks, config_path, [])
    return found


@pytest.mark.parametrize(
    ("num_ranks", "sizes"),
    [
        *((2, {"tensor": 2}), (4, {"tensor": 2}), (4, {"tensor": 4})),
        *((2, {"context": 2}), (4, {"context": 4}), (4, {"context": 2, "tensor": 2})),
    ],
    ids=["tensor 2", "shard 2, tensor 2", "tensor 4", "context 2", "context 4", "context 2, tensor 2"],
)
def test_ranks_that_share_the_model_write_what_one_process_does(
    launcher: Launcher,
    config_path: str,
    written_alone: Written,
    num_ranks: int,
    sizes: dict[str, int],
) -> None:
    """Documents with and without prompts and images, of any number of rows."""
    assert all(rows == padded for _, forwards in written_alone for rows, padded in forwards)
    ranks = launcher.call(num_ranks, write_on_ranks, config_path, [f"parallel.{axis}={n}" for axis, n in sizes.items()])
    parts = math.prod(sizes.values())
    for found in ranks:
        for (canvases, forwards), (expected, unpadded) in zip(found, written_alone, strict=True):
            assert [rows for rows, _ in forwards] == [rows for rows, _ in unpadded]
            assert [padded for _, padded in forwards] == [-(-rows // parts) * parts for rows, _ in forwards]
            assert any(rows < padded for rows, padded in forwards)
            assert [state(canvas) for canvas in canvases] == [state(canvas) for canvas in expected]
            assert sum(len(canvas.tokens) for canvas in canvases) > 80
            assert sum(len(images_of(canvas)) for canvas in canvases) > 20
            for own, theirs in zip(canvases, expected, strict=True):
                np.testing.assert_allclose(images_of(own).patches, images_of(theirs).patches, atol=1e-5)
