from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace
from types import EllipsisType

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Sample, ShardRecord
from oneflow_dist.data.codec import encode_pixels
from oneflow_dist.data.decoding import Reading, decode_record
from oneflow_dist.data.packing import pack
from oneflow_dist.data.samples import make_sample as make_complete
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.noising import noise_at, noise_sample, without_condition
from oneflow_dist.flow.schedule import KeepSchedule

TOKENIZER = load_tokenizer("bytes")
BOS, IMAGE = TOKENIZER.bos, TOKENIZER.image


def blank(config: Config, *prompt: int | np.ndarray | EllipsisType | None) -> Canvas:
    return blank_canvas(prompt, TOKENIZER, config.image, seed=0, index=3)


def latent(config: Config, value: float) -> np.ndarray:
    return np.full(config.image.shape, value, dtype=np.float32)


def wide(value: float) -> np.ndarray:
    """A latent of one by three patches."""
    return np.full((1, 4, 12), value, dtype=np.float32)


def insert(canvas: Canvas, config: Config, slots: list[int], tokens: list[int], step: int = 1) -> None:
    canvas.insert(np.array(slots, dtype=np.int64), np.array(tokens, dtype=np.int64), step, IMAGE)


# A canvas before the first step.


def test_an_empty_canvas_is_bos_with_an_open_slot(config: Config) -> None:
    canvas = blank(config)
    assert canvas.tokens.tolist() == [BOS]
    assert canvas.is_open.tolist() == [True]
    assert (canvas.text_time, canvas.is_writing, canvas.is_done) == (0.0, True, False)
    assert canvas.images.patches.shape == (0, config.image.patch_elements)
    assert canvas.images.grid.shape == (0, 2)
    assert canvas.latents() == []


def test_text_is_written_after_the_prompt_and_nowhere_inside(config: Config) -> None:
    canvas = blank(config, 5, latent(config, 0.5), 6)
    assert canvas.tokens.tolist() == [BOS, 5, IMAGE, 6]
    assert canvas.is_open.tolist() == [False, False, False, True]
    assert canvas.images.token.tolist() == [2]
    assert canvas.images.time.tolist() == [1.0]
    assert not canvas.is_moving.any()
    assert (canvas.images.patches == 0.5).all()


def test_images_of_a_prompt_may_have_any_shape_and_painted_ones_have_that_of_the_config(config: Config) -> None:
    given = np.random.default_rng(0).standard_normal((1, 4, 12), dtype=np.float32)
    canvas = blank(config, given, None, 5, given.transpose(0, 2, 1))
    assert canvas.images.grid.tolist() == [[1, 3], [2, 2], [3, 1]]
    first, painted, last = canvas.latents()
    np.testing.assert_array_equal(first, given)
    np.testing.assert_array_equal(last, given.transpose(0, 2, 1))
    assert painted.shape == config.image.shape
    assert canvas.num_rows == 5 + 3 + 4 + 3


def test_a_prompt_that_ends_in_an_image_to_paint_asks_for_no_text(config: Config) -> None:
    canvas = blank(config, 5, None)
    assert not canvas.is_open.any()
    assert (canvas.text_time, canvas.is_writing) == (1.0, False)
    assert canvas.images.time.tolist() == [0.0]
    assert canvas.is_moving.tolist() == [True]
    assert not canvas.is_done


def test_with_holes_text_is_written_there_and_nowhere_else(config: Config) -> None:
    canvas = blank(config, 5, ..., 6, None, ...)
    assert canvas.tokens.tolist() == [BOS, 5, 6, IMAGE]
    assert canvas.is_open.tolist() == [False, True, False, True]
    assert (canvas.text_time, canvas.is_writing) == (0.0, True)
    assert canvas.images.time.tolist() == [0.0]
    assert blank(config, ..., 5).is_open.tolist() == [True, False]
    assert blank(config, ..., ..., None).is_open.tolist() == [True, False]


def test_a_hole_before_an_image_to_paint_starts_text_and_image_together(config: Config) -> None:
    canvas = blank(config, ..., None)
    assert canvas.is_open.tolist() == [True, False]
    assert (canvas.is_writing, canvas.is_moving.tolist()) == (True, [True])


def test_a_canvas_depends_on_seed_and_index_alone(config: Config) -> None:
    def first(seed: int, index: int) -> list[float]:
        canvas = blank_canvas([None], TOKENIZER, config.image, seed, index)
        return [float(canvas.images.patches[0, 0]), canvas.rng.random()]

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(1, 2)), tuple(first(2, 1)), tuple(first(1, 3)), tuple(first(0, 2))}) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("ab", [97, 98]),
        ("a<|image|>", [97, None]),
        ("<|image|>", [None]),
        ("<|image|><|image|>b", [None, None, 98]),
        ("a<|hole|>b<|hole|>", [97, ..., 98, ...]),
        ("<|hole|><|image|>", [..., None]),
    ],
)
def test_a_prompt_marks_images_to_paint_and_holes(text: str, expected: Prompt) -> None:
    assert parse_prompt(text, TOKENIZER) == expected


# Moving.


def test_moving_images_and_text_advance_and_prompt_images_stay(config: Config) -> None:
    canvas = blank(config, wide(0.5), None, 7)
    before = canvas.latents()[1]
    canvas.advance(np.ones_like(canvas.images.patches), 0.25, 1)
    given, painted = canvas.latents()
    assert (given == 0.5).all()
    np.testing.assert_allclose(painted, before + 0.25, rtol=1e-6)
    assert canvas.images.time.tolist() == [1.0, 0.25]
    assert canvas.text_time == 0.25


def test_a_last_step_ends_at_time_one(config: Config) -> None:
    canvas = blank(config, None)
    canvas.images = replace(canvas.images, time=np.array([0.9]))
    before = canvas.images.patches
    canvas.advance(np.ones_like(canvas.images.patches), 0.25, 1)
    np.testing.assert_allclose(canvas.images.patches, before + 0.1, rtol=1e-5)
    assert canvas.images.time.tolist() == [1.0]
    assert canvas.is_done


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 49, 128])
def test_clocks_are_done_after_n_steps_and_not_before(config: Config, num_steps: int) -> None:
    """Also where N times 1/N is not 1 in floating point."""
    canvas = blank(config, None, 7)
    start = canvas.images.patches
    for step in range(1, num_steps + 1):
        assert canvas.is_writing, step
        assert canvas.image_end.tolist() == [0], step
        assert canvas.is_moving.all(), step
        canvas.advance(np.ones_like(canvas.images.patches), 1.0 / num_steps, step)
    assert canvas.is_done
    assert canvas.image_end.tolist() == [num_steps]
    np.testing.assert_allclose(canvas.images.patches, start + 1.0, atol=1e-4)


# Inserting.


def test_tokens_go_behind_their_slots_of_before(config: Config) -> None:
    canvas = blank(config, 1, 2, 3)
    insert(canvas, config, [0, 1, 3], [10, 20, 40], step=5)
    assert canvas.tokens.tolist() == [BOS, 10, 1, 20, 2, 3, 40]
    assert canvas.born.tolist() == [0, 5, 0, 5, 0, 0, 5]
    assert canvas.is_open.tolist() == [False, True, False, True, False, True, True]


def test_images_keep_their_shapes_times_and_births_when_others_are_inserted(config: Config) -> None:
    canvas = blank(config, 1, latent(config, 0.25), 2, wide(0.75), 3)
    insert(canvas, config, [5], [IMAGE], step=1)
    canvas.advance(np.zeros_like(canvas.images.patches), 0.25, 1)
    third = canvas.latents()[2]
    insert(canvas, config, [0, 2, 4, 6], [IMAGE, 30, IMAGE, IMAGE], step=2)
    assert canvas.tokens.tolist() == [BOS, IMAGE, 1, IMAGE, 30, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE]
    assert canvas.born.tolist() == [0, 2, 0, 0, 2, 0, 0, 2, 0, 1, 2]
    assert canvas.images.token.tolist() == [1, 3, 6, 7, 9, 10]
    assert canvas.images.time.tolist() == [0.0, 1.0, 1.0, 0.0, 0.25, 0.0]
    assert canvas.image_is_target.tolist() == [True, False, False, True, True, True]
    assert canvas.images.grid.tolist() == [[2, 2], [2, 2], [1, 3], [2, 2], [2, 2], [2, 2]]
    latents = canvas.latents()
    np.testing.assert_array_equal(latents[1], latent(config, 0.25))
    np.testing.assert_array_equal(latents[2], wide(0.75))
    np.testing.assert_array_equal(latents[4], third)
    spawned = np.stack([latents[image] for image in (0, 3, 5)])
    assert len(np.unique(spawned)) == spawned.size


def test_a_spawned_image_is_standard_normal_noise(config: Config) -> None:
    canvas = blank(config)
    insert(canvas, config, [0], [IMAGE])
    for _ in range(5):
        insert(canvas, config, list(range(len(canvas.tokens))), [IMAGE] * len(canvas.tokens))
    assert canvas.images.patches.size > 3000
    assert canvas.images.patches.mean() == pytest.approx(0.0, abs=0.06)
    assert canvas.images.patches.std() == pytest.approx(1.0, abs=0.05)


def test_inserting_nothing_changes_nothing(config: Config) -> None:
    canvas = blank(config, 1, None, 2)
    before = canvas.copy()
    insert(canvas, config, [], [])
    for field in fields(Canvas):
        assert getattr(canvas, field.name) is getattr(before, field.name), field.name


def test_a_copy_stays_as_it_was(config: Config) -> None:
    canvas = blank(config, 1, None, 2)
    before = canvas.copy()
    tokens, patches = canvas.tokens.tolist(), canvas.images.patches.copy()
    insert(canvas, config, [1, 3], [IMAGE, 9])
    canvas.advance(np.ones_like(canvas.images.patches), 0.5, 1)
    assert before.tokens.tolist() == tokens
    assert before.images.time.tolist() == [0.0]
    assert (before.text_time, len(before.born)) == (0.0, 4)
    np.testing.assert_array_equal(before.images.patches, patches)


# Reading.


def test_parts_are_text_and_images_in_reading_order(config: Config) -> None:
    words = [*b"one "], [*b"two"]
    canvas = blank(config, *words[0], latent(config, 0.0), None, *words[1], None)
    assert canvas.parts(TOKENIZER) == ["one", 0, 1, "two", 2]
    assert blank(config).parts(TOKENIZER) == []
    assert blank(config, *b"  ").parts(TOKENIZER) == []


def test_number_of_rows_is_that_of_the_packed_document(config: Config) -> None:
    for canvas in (blank(config), blank(config, 1, None, 2, wide(0.0))):
        assert canvas.num_rows == pack([canvas.snapshot()], None).counts.rows


# The sampler sees what training has shown.

ROWS = ("tokens", "token_row", "token_sequence", "image_time", "patches", "patch_image", "patch_row", "patch_weight")
ROWS += ("row_image", "position", "cu_seqlens", "text_time", "max_seqlen")


def assert_same_rows(actual: PackedBatch, expected: PackedBatch, names: tuple[str, ...] = ROWS) -> None:
    for name in names:
        a, b = getattr(actual, name), getattr(expected, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def canvas_of(noisy: NoisySample, is_target: np.ndarray, config: Config) -> Canvas:
    """A canvas in the state that a noisy sample describes; `is_target` of its images."""
    return Canvas(
        key=noisy.key,
        rng=np.random.default_rng(0),
        image=config.image,
        text_time=noisy.text_time,
        tokens=noisy.tokens,
        is_open=noisy.is_open,
        born=np.zeros(len(noisy.tokens), dtype=np.int64),
        images=noisy.images,
        image_is_target=is_target,
        image_end=np.zeros(len(is_target), dtype=np.int64),
    )


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_a_noisy_sample_on_a_canvas_gives_the_rows_it_had_in_training(
    config: Config, make_sample: Callable[..., Sample], seed: int, is_interleaved: bool
) -> None:
    tokens = [BOS, 1, None, 2, 3, None, 4, None, 5]
    sample = make_sample(tokens, num_prompt=4, is_interleaved=is_interleaved, grid=[(3, 1), (2, 2), (1, 4)])
    noisy = noise_sample(sample, KeepSchedule(), 0.0, np.random.default_rng(seed))
    is_target = noisy.is_moving.copy()
    is_target[1:] = True  # the first image belongs to the prompt
    snapshot = canvas_of(noisy, is_target, config).snapshot()
    names = ROWS if noisy.text_time == 1.0 else (*ROWS, "slot_weight")
    assert_same_rows(pack([snapshot], None), pack([noisy], None), names)
    dropped = [pack([without_condition(view)], None) for view in (snapshot, noisy)]
    assert_same_rows(*dropped, (*ROWS, "slot_weight"))


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), level).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("task", ["text_to_image", "image_to_text", "both", "interleaved", "text_only"])
@pytest.mark.parametrize("prompt", ["", "draw:"])
def test_a_blank_canvas_is_the_first_instant_of_its_task(config: Config, task: str, prompt: str) -> None:
    """Everything to be generated is missing or pure noise, in training as in generation: rows, open slots and times."""
    record = ShardRecord(key="x", files={"txt": b"a cat", "png": png(200)})
    document = decode_record(record, {}, "txt", Reading(), TOKENIZER, config.image)
    sample = make_complete(document, task, TOKENIZER.encode(prompt), TOKENIZER, config.image, np.random.default_rng(0))
    age = np.full(len(sample.images), -1.0 if task == "interleaved" else 0.0)
    age = np.where(sample.is_target[sample.images.token], age, 1.0)
    text_time = 1.0 if task == "text_to_image" else 0.0
    noisy = noise_at(sample, text_time, age, KeepSchedule(), np.random.default_rng(0))

    start = TOKENIZER.encode(prompt)
    wanted: dict[str, Prompt] = {
        "text_to_image": [*TOKENIZER.encode("a cat"), None],
        "image_to_text": [encode_pixels(png(200), config.image, "x")],
        "both": [..., None],
        "interleaved": [],
        "text_only": [],
    }
    canvas = blank(config, *start, *wanted[task])
    if task in ("text_to_image", "both"):
        canvas.images = replace(canvas.images, patches=noisy.images.patches)  # the same noise
    assert_same_rows(pack([canvas.snapshot()], None), pack([noisy], None), (*ROWS, "slot_weight"))


def test_no_slot_is_open_when_the_text_is_done(config: Config) -> None:
    canvas = blank(config, 1)
    assert canvas.snapshot().is_open.tolist() == [False, True]
    canvas.text_time = 1.0
    assert canvas.snapshot().is_open.tolist() == [False, False]
