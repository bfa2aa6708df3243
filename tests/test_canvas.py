from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.canvas import Canvas, Prompt, PromptPart, blank_canvas, parse_prompt, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Pieces, Sample, ShardRecord
from oneflow_dist.data.decoding import Reading, decode_record, read_fields
from oneflow_dist.data.media import encode_file
from oneflow_dist.data.packing import pack
from oneflow_dist.data.samples import make_sample as make_complete
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.flow.noising import noise_at, noise_sample, without_condition, without_prompt
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.making import Making
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate_steps
from tests.messages import names, naming
from tests.modalities import SOUND, VIDEO, VISION
from tests.noising import noising
from tests.sampling import sampling

PAINT: PromptPart = ("image", None)


def tokenizer_of(config: Config) -> Tokenizer:
    return load_tokenizer("bytes", config.modality)


@pytest.fixture(scope="module")
def kinds(make_config: Callable[..., Config]) -> Config:
    """Images, sounds, videos, and what pictures look like."""
    return make_config(*SOUND, *VIDEO, *VISION)


TOKENIZER = load_tokenizer("bytes")
BOS = TOKENIZER.bos
IMAGE = TOKENIZER.encoding.encode_single_token("<|image|>")


def blank(config: Config, *prompt: PromptPart) -> Canvas:
    return blank_canvas(prompt, tokenizer_of(config), config.modality, seed=0, index=3)


def given(value: float) -> Part:
    """An image of the config's shape."""
    return "image", np.full((1, 8, 8), value, dtype=np.float32)


def wide(value: float) -> Part:
    """An image of one by three patches."""
    return "image", np.full((1, 4, 12), value, dtype=np.float32)


def insert(canvas: Canvas, slots: list[int], tokens: list[int], step: int = 1) -> None:
    canvas.insert(np.array(slots, dtype=np.int64), np.array(tokens, dtype=np.int64), step)


def images_of(canvas: Canvas) -> Pieces:
    return canvas.making["image"].pieces


def with_images(canvas: Canvas, **changes: np.ndarray) -> None:
    """Another time or content of its images."""
    making = canvas.making["image"]
    canvas.making = {**canvas.making, "image": replace(making, pieces=replace(making.pieces, **changes))}


def advance(canvas: Canvas, step_size: float, step: int, velocity: float = 1.0, **changes: Any) -> None:
    """All pieces along the same velocity."""
    kinds = [np.full_like(making.noisy().velocity, velocity) for making in canvas.making.values()]
    canvas.advance(kinds, step_size, sampling(steps=round(1 / step_size), **changes), step)


# A canvas before the first step.


def test_an_empty_canvas_is_bos_with_an_open_slot(config: Config) -> None:
    canvas = blank(config)
    assert canvas.tokens.tolist() == [BOS]
    assert canvas.is_open.tolist() == [True]
    assert (canvas.text_time, canvas.is_writing, canvas.is_done) == (0.0, True, False)
    assert images_of(canvas).patches.shape == (0, config.modality["image"].patch_elements)
    assert images_of(canvas).grid.shape == (0, 3)
    assert canvas.latents("image") == []


def test_text_is_written_after_the_prompt_and_nowhere_inside(config: Config) -> None:
    canvas = blank(config, 5, given(0.5), 6)
    assert canvas.tokens.tolist() == [BOS, 5, IMAGE, 6]
    assert canvas.is_open.tolist() == [False, False, False, True]
    assert images_of(canvas).token.tolist() == [2]
    assert images_of(canvas).time.tolist() == [1.0]
    assert not canvas.is_moving
    assert (images_of(canvas).patches == 0.5).all()


def test_images_of_a_prompt_may_have_any_shape_and_painted_ones_have_that_of_the_config(config: Config) -> None:
    own = np.random.default_rng(0).standard_normal((1, 4, 12), dtype=np.float32)
    canvas = blank(config, ("image", own), PAINT, 5, ("image", own.transpose(0, 2, 1)))
    assert images_of(canvas).grid.tolist() == [[1, 1, 3], [1, 2, 2], [1, 3, 1]]
    first, painted, last = canvas.latents("image")
    np.testing.assert_array_equal(first, own)
    np.testing.assert_array_equal(last, own.transpose(0, 2, 1))
    assert painted.shape == (1, 8, 8)
    assert canvas.num_rows == 5 + 3 + 4 + 3


def test_a_prompt_that_ends_in_an_image_to_paint_asks_for_no_text(config: Config) -> None:
    canvas = blank(config, 5, PAINT)
    assert not canvas.is_open.any()
    assert (canvas.text_time, canvas.is_writing) == (1.0, False)
    assert images_of(canvas).time.tolist() == [0.0]
    assert canvas.is_moving
    assert not canvas.is_done


def test_with_holes_text_is_written_there_and_nowhere_else(config: Config) -> None:
    canvas = blank(config, 5, ..., 6, PAINT, ...)
    assert canvas.tokens.tolist() == [BOS, 5, 6, IMAGE]
    assert canvas.is_open.tolist() == [False, True, False, True]
    assert (canvas.text_time, canvas.is_writing) == (0.0, True)
    assert images_of(canvas).time.tolist() == [0.0]
    assert blank(config, ..., 5).is_open.tolist() == [True, False]
    assert blank(config, ..., ..., PAINT).is_open.tolist() == [True, False]


def test_a_hole_before_an_image_to_paint_starts_text_and_image_together(config: Config) -> None:
    canvas = blank(config, ..., PAINT)
    assert canvas.is_open.tolist() == [True, False]
    assert (canvas.is_writing, canvas.is_moving) == (True, True)


def test_a_canvas_depends_on_seed_and_index_alone(config: Config) -> None:
    def first(seed: int, index: int) -> list[float]:
        canvas = blank_canvas([PAINT], tokenizer_of(config), config.modality, seed, index)
        return [float(images_of(canvas).patches[0, 0]), canvas.rng.random()]

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(1, 2)), tuple(first(2, 1)), tuple(first(1, 3)), tuple(first(0, 2))}) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("ab", [97, 98]),
        ("a<|image|>", [97, PAINT]),
        ("<|image|>", [PAINT]),
        ("<|image|><|image|>b", [PAINT, PAINT, 98]),
        ("a<|hole|>b<|hole|>", [97, ..., 98, ...]),
        ("<|hole|><|image|>", [..., PAINT]),
        ("<|sound|>a<|image|><|vision|>", [("sound", None), 97, PAINT, ("vision", None)]),
        ("<|noise|>", [*b"<|noise|>"]),
    ],
)
def test_a_prompt_marks_pieces_to_make_and_holes(text: str, expected: Prompt, kinds: Config) -> None:
    assert parse_prompt(text, tokenizer_of(kinds)) == expected


# Editing: a document is a list.


def test_a_document_as_a_list_is_that_document_again(config: Config) -> None:
    canvas = blank(config, 5, wide(0.5), 6, PAINT, 7, ...)
    insert(canvas, [2, 5], [9, IMAGE])
    advance(canvas, 0.25, 1)
    again = blank(config, *canvas.as_prompt())
    assert again.tokens.tolist() == canvas.tokens.tolist()
    assert len(again.latents("image")) == 3
    for one, other in zip(again.latents("image"), canvas.latents("image"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_edited_is_open_or_moves_and_the_rest_is_prompt(config: Config) -> None:
    parts = blank(config, 5, wide(0.5), 6, wide(0.25), 7).as_prompt()
    hole = blank(config, *parts[:2], ..., *parts[3:])
    assert hole.is_open.tolist() == [False, False, True, False, False]
    assert not hole.is_moving
    repainted = blank(config, *parts[:3], PAINT, *parts[4:])
    assert not repainted.is_open.any()
    assert (repainted.text_time, repainted.is_writing) == (1.0, False)
    assert images_of(repainted).time.tolist() == [1.0, 0.0]
    assert repainted.is_moving


@pytest.mark.parametrize("time", [0.25, 0.5, 0.99])
def test_a_variation_starts_between_noise_and_its_picture(config: Config, time: float) -> None:
    kind, latent = wide(0.5)
    canvas = blank(config, 5, (kind, latent, time))
    assert images_of(canvas).time.tolist() == [time]
    assert canvas.snapshot().pieces[0].is_moving.tolist() == [True]
    assert not canvas.is_writing
    noise = (canvas.latents("image")[0] - time * latent) / (1.0 - time)
    assert noise.shape == latent.shape
    assert abs(float(noise.mean())) < 0.6
    assert 0.7 < float(noise.std()) < 1.3


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (("image", np.zeros((3, 8, 8), dtype=np.float32)), ("<|image|>", 3, "modality.image.channels", 1)),
        (("image", np.zeros((1, 8, 9), dtype=np.float32)), ("<|image|>", "[8, 9]")),
        (("image", np.zeros((1, 8, 8), dtype=np.float32), 1.5), ("<|image|>", 1.5)),
        (("image", np.zeros((1, 8, 8), dtype=np.float32), -0.1), ("<|image|>", -0.1)),
    ],
)
def test_pieces_that_the_model_cannot_have_seen_are_refused(
    config: Config, part: PromptPart, said: tuple[object, ...]
) -> None:
    with pytest.raises(ValueError, match=naming(*said)):
        blank(config, 5, part)


def test_the_prompt_in_front_ends_at_the_first_hole_or_piece_to_make(config: Config) -> None:
    for parts, end in (
        ([], 1),
        ([5, 6], 3),
        ([5, ..., 6, ...], 2),
        ([5, 6, PAINT], 3),
        ([wide(0.5)], 2),
        ([5, PAINT, 6, ...], 2),
        ([5, wide(0.5), 6, (*wide(0.5), 0.5), 7], 4),
    ):
        assert blank(config, *parts).block_ends == (end,), parts


def test_a_finished_block_is_prompt_and_the_next_begins_at_its_end(config: Config) -> None:
    canvas = blank(config, 5)
    insert(canvas, [1, 1], [9, IMAGE])
    advance(canvas, 1.0, 1)
    assert canvas.is_done
    before = canvas.latents("image")[0]
    canvas.begin_block()
    assert canvas.block_ends == (2, 4)
    assert canvas.snapshot().is_given.tolist() == [True] * 4
    assert canvas.is_open.tolist() == [False, False, False, True]
    assert (canvas.is_writing, canvas.is_moving) == (True, False)
    insert(canvas, [3], [IMAGE], step=2)
    advance(canvas, 0.5, 2)
    canvas.rewind(0.1, KeepSchedule())
    assert canvas.tokens.tolist()[:4] == [BOS, 5, 9, IMAGE]
    np.testing.assert_array_equal(canvas.latents("image")[0], before)


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_a_sample_is_a_prompt_with_holes(
    config: Config, make_sample: Callable[..., Sample], is_interleaved: bool
) -> None:
    """Of scattered targets: stretches that can go are holes, images that stand there are to make."""
    sample = make_sample([BOS, 1, 2, None, 3, 4, None, 5], num_prompt=2, is_interleaved=is_interleaved)
    sample = replace(sample, is_target=np.array([False, False, True, True, True, False, True, False]))
    first, second = (None, None) if is_interleaved else (PAINT, PAINT)
    expected = [1, ..., 4, ..., 5] if is_interleaved else [1, ..., first, ..., 4, second, 5]
    found = prompt_of(sample, config.modality)
    assert found == expected
    noisy = noise_at(sample, 0.0, [np.zeros(2) - is_interleaved], noising(), np.random.default_rng(0))
    snapshot = blank(config, *found).snapshot()
    np.testing.assert_array_equal(snapshot.tokens, noisy.tokens)
    np.testing.assert_array_equal(snapshot.is_open, noisy.is_open)
    assert snapshot.block_ends == noisy.block_ends


# Moving.


def test_moving_images_and_text_advance_and_prompt_images_stay(config: Config) -> None:
    canvas = blank(config, wide(0.5), PAINT, 7, ...)
    before = canvas.latents("image")[1]
    advance(canvas, 0.25, 1)
    first, painted = canvas.latents("image")
    assert (first == 0.5).all()
    np.testing.assert_allclose(painted, before + 0.25, rtol=1e-6)
    assert images_of(canvas).time.tolist() == [1.0, 0.25]
    assert canvas.text_time == 0.25


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 49, 128])
def test_clocks_are_done_after_n_steps_and_not_before(config: Config, num_steps: int) -> None:
    """Also where N times 1/N is not 1 in floating point."""
    canvas = blank(config, PAINT, 7, ...)
    start = images_of(canvas).patches
    for step in range(1, num_steps + 1):
        assert canvas.is_writing, step
        assert canvas.making["image"].end.tolist() == [0], step
        assert canvas.making["image"].is_moving.all(), step
        advance(canvas, 1.0 / num_steps, step)
    assert canvas.is_done
    assert canvas.making["image"].end.tolist() == [num_steps]
    np.testing.assert_allclose(images_of(canvas).patches, start + 1.0, atol=1e-4)


def test_pieces_go_with_the_text_and_by_their_shift_when_it_is_done(config: Config) -> None:
    """As in training: there a clock that is shifted belongs to no instant of a text that is being written."""
    for prompt, time in (([PAINT, 7, ...], 0.25), ([7, PAINT], 0.1)):  # .25 / (3 - 2 * .25)
        canvas = blank(config, *prompt)
        advance(canvas, 0.25, 1, shift=3.0)
        np.testing.assert_allclose(images_of(canvas).time, [time], rtol=1e-12)


# Inserting.


def test_tokens_go_behind_their_slots_of_before(config: Config) -> None:
    canvas = blank(config, 1, 2, 3)
    insert(canvas, [0, 1, 3], [10, 20, 40], step=5)
    assert canvas.tokens.tolist() == [BOS, 10, 1, 20, 2, 3, 40]
    assert canvas.born.tolist() == [0, 5, 0, 5, 0, 0, 5]
    assert canvas.is_open.tolist() == [False, True, False, True, False, True, True]


def test_images_keep_their_shapes_times_and_births_when_others_are_inserted(config: Config) -> None:
    canvas = blank(config, 1, given(0.25), 2, wide(0.75), 3)
    insert(canvas, [5], [IMAGE], step=1)
    advance(canvas, 0.25, 1, velocity=0.0)
    third = canvas.latents("image")[2]
    insert(canvas, [0, 2, 4, 6], [IMAGE, 30, IMAGE, IMAGE], step=2)
    assert canvas.tokens.tolist() == [BOS, IMAGE, 1, IMAGE, 30, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE]
    assert canvas.born.tolist() == [0, 2, 0, 0, 2, 0, 0, 2, 0, 1, 2]
    assert images_of(canvas).token.tolist() == [1, 3, 6, 7, 9, 10]
    assert images_of(canvas).time.tolist() == [0.0, 1.0, 1.0, 0.0, 0.25, 0.0]
    assert canvas.making["image"].is_target.tolist() == [True, False, False, True, True, True]
    assert images_of(canvas).grid.tolist() == [[1, 2, 2], [1, 2, 2], [1, 1, 3], [1, 2, 2], [1, 2, 2], [1, 2, 2]]
    latents = canvas.latents("image")
    np.testing.assert_array_equal(latents[1], np.full((1, 8, 8), 0.25))
    np.testing.assert_array_equal(latents[2], np.full((1, 4, 12), 0.75))
    np.testing.assert_array_equal(latents[4], third)
    spawned = np.stack([latents[image] for image in (0, 3, 5)])
    assert len(np.unique(spawned)) == spawned.size


def test_inserting_nothing_changes_nothing(config: Config) -> None:
    canvas = blank(config, 1, PAINT, 2)
    before = canvas.copy()
    insert(canvas, [], [])
    for field in fields(Canvas):
        assert getattr(canvas, field.name) is getattr(before, field.name), field.name


def test_a_copy_stays_as_it_was(config: Config) -> None:
    canvas = blank(config, 1, PAINT, 2, ...)
    before = canvas.copy()
    tokens, patches = canvas.tokens.tolist(), images_of(canvas).patches.copy()
    insert(canvas, [1, 3], [IMAGE, 9])
    advance(canvas, 0.5, 1)
    assert before.tokens.tolist() == tokens
    assert images_of(before).time.tolist() == [0.0]
    assert (before.text_time, len(before.born)) == (0.0, 4)
    np.testing.assert_array_equal(images_of(before).patches, patches)


# Reading.


def test_parts_are_text_and_images_in_reading_order(config: Config) -> None:
    words = [*b"one "], [*b"two"]
    canvas = blank(config, *words[0], given(0.0), PAINT, *words[1], PAINT)
    tokenizer = tokenizer_of(config)
    assert canvas.parts(tokenizer) == ["one", ("image", 0), ("image", 1), "two", ("image", 2)]
    assert blank(config).parts(tokenizer) == []
    assert blank(config, *b"  ").parts(tokenizer) == []


def test_number_of_rows_is_that_of_the_packed_document(config: Config) -> None:
    for canvas in (blank(config), blank(config, 1, PAINT, 2, wide(0.0))):
        assert canvas.num_rows == pack([canvas.snapshot()], None).counts.rows


# The sampler sees what training has shown.

ROWS = ("tokens", "token_row", "token_sequence", "position", "cu_seqlens", "text_time", "max_seqlen")
OF_PIECES = ("time", "grid", "patches", "patch_piece", "patch_row", "patch_weight")


def assert_same_view(snapshot: NoisySample, noisy: NoisySample) -> None:
    """With its prompt and without."""
    np.testing.assert_array_equal(snapshot.is_given, noisy.is_given)
    for views in ((snapshot, noisy), (without_prompt(snapshot), without_prompt(noisy))):
        assert_same_rows(*(pack([view], None) for view in views), (*ROWS, "slot_weight"))


def assert_same_rows(actual: PackedBatch, expected: PackedBatch, names: tuple[str, ...] = ROWS) -> None:
    for name in names:
        a, b = getattr(actual, name), getattr(expected, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    for own, theirs in zip(actual.pieces, expected.pieces, strict=True):
        for name in OF_PIECES:
            assert torch.equal(getattr(own, name), getattr(theirs, name)), name


def canvas_of(noisy: NoisySample, is_target: np.ndarray, config: Config) -> Canvas:
    """A canvas in the state that a noisy sample describes; `is_target` of its images."""
    making = Making(
        modality=config.modality["image"],
        token=IMAGE,
        pieces=noisy.pieces[0].pieces,
        is_target=is_target,
        end=np.zeros(len(is_target), dtype=np.int64),
    )
    return Canvas(
        key=noisy.key,
        rng=np.random.default_rng(0),
        text_time=noisy.text_time,
        tokens=noisy.tokens,
        is_open=noisy.is_open,
        born=(~noisy.is_given).astype(np.int64),
        making={"image": making},
        block_ends=noisy.block_ends,
    )


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_a_noisy_sample_on_a_canvas_gives_the_rows_it_had_in_training(
    config: Config, make_sample: Callable[..., Sample], seed: int, is_interleaved: bool
) -> None:
    tokens = [BOS, 1, None, 2, 3, None, 4, None, 5]
    sample = make_sample(tokens, num_prompt=4, is_interleaved=is_interleaved, grid=[(3, 1), (2, 2), (1, 4)])
    noisy = noise_sample(sample, noising(), np.random.default_rng(seed))
    is_target = noisy.pieces[0].is_moving.copy()
    is_target[1:] = True  # the first image belongs to the prompt
    snapshot = canvas_of(noisy, is_target, config).snapshot()
    np.testing.assert_array_equal(snapshot.is_given, noisy.is_given)
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
    tokenizer, start, rng = tokenizer_of(config), TOKENIZER.encode(prompt), np.random.default_rng(0)
    document = decode_record(record, {}, "txt", Reading(), tokenizer, config.modality)
    sample = make_complete(document, task, "latents", start, tokenizer, config.modality, rng)
    (images,) = sample.pieces
    age = np.full(len(images), -1.0 if task == "interleaved" else 0.0)
    age = np.where(sample.is_target[images.token], age, 1.0)
    text_time = 1.0 if task == "text_to_image" else 0.0
    noisy = noise_at(sample, text_time, [age], noising(), np.random.default_rng(0))

    wanted: dict[str, Prompt] = {
        "text_to_image": [*TOKENIZER.encode("a cat"), PAINT],
        "image_to_text": [("image", encode_file(png(200), config.modality["image"], "x"))],
        "both": [..., PAINT],
        "interleaved": [],
        "text_only": [],
    }
    canvas = blank(config, *start, *wanted[task])
    if task in ("text_to_image", "both"):
        with_images(canvas, patches=noisy.pieces[0].pieces.patches)  # the same noise
    assert_same_view(canvas.snapshot(), noisy)


@pytest.mark.parametrize("painted", [True, False])
def test_the_prompt_of_a_conversation_is_the_first_instant_of_its_answer(config: Config, painted: bool) -> None:
    """The canvas of a question is what training sees before the first token of its answer."""
    image = [{"type": "image"}]
    so: list[dict[str, str]] = [*(image if painted else []), {"type": "text", "text": "so"}]
    turns = [{"role": "user", "content": image}, {"role": "assistant", "content": so}]
    content = json.dumps({"messages": turns}).encode()
    files = {"json": content, "0.png": png(200)} | ({"1.png": png(90)} if painted else {})
    record = ShardRecord(key="x", files=files)
    tokenizer, rng = tokenizer_of(config), np.random.default_rng(0)
    document = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, config.modality)
    sample = make_complete(document, "instruct", "latents", [*b"say:"], tokenizer, config.modality, rng)
    assert sample.is_interleaved == painted
    age = np.where(sample.is_target[sample.pieces[0].token], -1.0, 1.0)
    noisy = noise_at(sample, 0.0, [age], noising(), rng)
    canvas = blank(config, *prompt_of(sample, config.modality))
    assert_same_view(canvas.snapshot(), noisy)
    assert np.array_equal(canvas.making["image"].pieces.patches, noisy.pieces[0].pieces.patches)


def test_what_was_there_before_the_first_step_is_given_unless_it_is_to_be_made(config: Config) -> None:
    canvas = blank(config, 5, PAINT, ..., given(0.5), ...)
    insert(canvas, [2, 3], [6, IMAGE])
    assert canvas.tokens.tolist() == [BOS, 5, IMAGE, 6, IMAGE, IMAGE]
    assert canvas.snapshot().is_given.tolist() == [True, True, False, False, True, False]


def test_what_was_given_is_no_part_of_what_was_written(config: Config) -> None:
    canvas = blank(config, *b"ab", given(1.0), *b"c")
    insert(canvas, [4, 4, 4], [*b"d", IMAGE, *b"e"])
    assert canvas.parts(tokenizer_of(config), 4) == ["d", ("image", 1), "e"]
    assert canvas.parts(tokenizer_of(config)) == ["ab", ("image", 0), "cd", ("image", 1), "e"]


def test_no_slot_is_open_when_the_text_is_done(config: Config) -> None:
    canvas = blank(config, 1)
    assert canvas.snapshot().is_open.tolist() == [False, True]
    canvas.text_time = 1.0
    assert canvas.snapshot().is_open.tolist() == [False, False]


# How many steps are left.


@pytest.mark.parametrize(
    "changes", [(), ("sampling.piece_steps={image=3}", "sampling.shift=2.5")], ids=["even", "other"]
)
@pytest.mark.parametrize("late", [0, 2, 4])
def test_the_steps_that_may_be_left_never_grow_and_end_with_none(
    late: int,
    changes: tuple[str, ...],
    make_config: Callable[..., Config],
    tokenizer: Tokenizer,
    make_model: Callable[..., OneFlow],
) -> None:
    """Whenever the last image begins."""
    config = make_config("sampling.steps=5", "sampling.time_power=1.5", "sampling.max_rows=40", *changes)
    prompt = parse_prompt("one<|image|><|hole|>", tokenizer)
    canvases = [blank_canvas(prompt, tokenizer, config.modality, 0, index) for index in range(4)]
    totals = [max(canvas.steps_left(config.sampling) for canvas in canvases)]
    for step in (step.number for step in generate_steps(make_model(config), canvases, config, tokenizer)):
        if step == late:
            canvases[1].insert(np.array([1]), np.array([tokenizer.piece_of["image"]]), step)
        totals.append(step + max(canvas.steps_left(config.sampling) for canvas in canvases))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == len(totals) - 1


# Pieces of several modalities.


def test_pieces_of_every_kind_stand_where_they_are_asked_for(kinds: Config) -> None:
    sound = np.random.default_rng(0).standard_normal((2, 6), dtype=np.float32)
    look = np.ones((3, 4, 2), dtype=np.float32)
    canvas = blank(kinds, ("sound", None), 5, PAINT, ("vision", look), ("sound", sound), ("video", None), 6)
    tokenizer = tokenizer_of(kinds)
    image, voice, video, vision = (tokenizer.piece_of[kind] for kind in ("image", "sound", "video", "vision"))
    assert canvas.tokens.tolist() == [BOS, voice, 5, image, vision, voice, video, 6]
    assert len({*canvas.tokens.tolist()}) == 7
    assert {kind: making.pieces.token.tolist() for kind, making in canvas.making.items()} == {
        "image": [3],
        "sound": [1, 5],
        "video": [6],
        "vision": [4],
    }
    assert canvas.making["sound"].pieces.time.tolist() == [0.0, 1.0]
    assert canvas.making["sound"].is_target.tolist() == [True, False]
    assert canvas.making["vision"].is_target.tolist() == [False]
    np.testing.assert_array_equal(canvas.latents("sound")[1], sound)
    np.testing.assert_array_equal(canvas.latents("vision")[0], look)
    assert [latent.shape for kind in canvas.making for latent in canvas.latents(kind)] == [
        *((1, 8, 8), (2, 12), (2, 6), (1, 2, 4, 4), (3, 4, 2))
    ]
    parts = [("sound", 0), "\x05", ("image", 0), ("vision", 0), ("sound", 1), ("video", 0), "\x06"]
    assert canvas.parts(tokenizer) == parts
    assert canvas.num_rows == 8 + 4 + (4 + 2) + 4 + 2 == pack([canvas.snapshot()], None).counts.rows


def test_inserted_tokens_spawn_noise_of_their_own_kind_and_move_the_others_along(kinds: Config) -> None:
    canvas = blank(kinds, 1, ("sound", None), 2, PAINT, 3)
    piece_of = tokenizer_of(kinds).piece_of
    before = canvas.latents("sound")[0], canvas.latents("image")[0]
    insert(canvas, [0, 1, 2, 5], [piece_of["video"], piece_of["sound"], 9, piece_of["image"]], step=4)
    assert canvas.tokens.tolist() == [
        *(BOS, piece_of["video"], 1, piece_of["sound"], piece_of["sound"], 9, 2, piece_of["image"], 3),
        piece_of["image"],
    ]
    assert {kind: making.pieces.token.tolist() for kind, making in canvas.making.items()} == {
        "image": [7, 9],
        "sound": [3, 4],
        "video": [1],
        "vision": [],
    }
    np.testing.assert_array_equal(canvas.latents("sound")[1], before[0])
    np.testing.assert_array_equal(canvas.latents("image")[0], before[1])
    new = [canvas.latents("sound")[0], canvas.latents("image")[1], canvas.latents("video")[0]]
    assert [latent.shape for latent in new] == [(2, 12), (1, 8, 8), (1, 2, 4, 4)]
    assert all(0.5 < latent.std() < 1.5 for latent in new)


def test_each_kind_goes_by_its_own_clock_and_the_document_is_done_with_the_last(kinds: Config) -> None:
    canvas = blank(kinds, ("sound", None), PAINT)
    sound = tokenizer_of(kinds).piece_of["sound"]
    for step in range(1, 5):
        advance(canvas, 0.25, step)
        if step == 1:
            insert(canvas, [2], [sound], step)
    assert images_of(canvas).time.tolist() == [1.0]
    assert canvas.making["sound"].pieces.time.tolist() == [1.0, 0.75]
    assert (canvas.making["image"].end.tolist(), canvas.making["sound"].end.tolist()) == ([4], [4, 0])
    assert (canvas.making["image"].clock_left(1.0), canvas.making["sound"].clock_left(1.0)) == (0.0, 0.25)
    assert not canvas.is_done
    advance(canvas, 0.25, 5)
    assert canvas.making["sound"].end.tolist() == [4, 5]
    assert canvas.is_done


def test_what_is_only_given_never_moves_and_cannot_be_made(kinds: Config) -> None:
    look = np.ones((3, 4, 4), dtype=np.float32)
    canvas = blank(kinds, ("vision", look), PAINT)
    noisy = canvas.making["vision"].noisy()
    assert (noisy.velocity.shape, noisy.is_moving.tolist()) == ((4, 0), [False])
    advance(canvas, 0.5, 1)
    np.testing.assert_array_equal(canvas.latents("vision")[0], look)
    with pytest.raises(ValueError) as error:
        blank(kinds, ("vision", None))
    assert names(str(error.value), "<|vision|>", "modality.vision", "given")
