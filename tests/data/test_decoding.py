from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.config import Config, ImageConfig
from oneflow_dist.containers import Sample, ShardRecord
from oneflow_dist.data.decoding import TASKS, cut_window, decode_record, num_rows, read_segments
from oneflow_dist.data.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")
KEY = "pets/cats-000/0001"


def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, format="PNG")
    return buffer.getvalue()


def record(**files: bytes) -> ShardRecord:
    """File names with _ for the dot."""
    return ShardRecord(key=KEY, files={name.replace("_", ".").lstrip("."): data for name, data in files.items()})


def document(*segments: Any, **files: bytes) -> ShardRecord:
    return record(json=json.dumps({"segments": segments}).encode(), **files)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


PAIR = record(txt=b" a cat\n", png=png(255))
STORY = document(text("one"), image("b.png"), text("two"), text("three"), image("a.png"), b_png=png(0), a_png=png(255))


def decode(source: ShardRecord, task: str, config: Config, prompt: str = "") -> Sample:
    return decode_record(source, task, prompt, TOKENIZER, config.image)


def spell(sample: Sample) -> list[str]:
    """The sample as prompt and target: tokens as text, an image as #."""
    tokens = sample.tokens.tolist()
    assert tokens[0] == TOKENIZER.bos
    parts = []
    for is_target in (False, True):
        own = [token for token, target in zip(tokens[1:], sample.is_target[1:], strict=True) if target == is_target]
        parts.append(TOKENIZER.decode(own).replace("<|image|>", "#"))
    return parts


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("text_to_image", ["a cat", "#"]),
        ("image_to_text", ["#", " a cat"]),
        ("both", ["", "a cat#"]),
        ("interleaved", ["", "a cat#"]),
        ("text_only", ["", "a cat"]),
        ("image_only", ["", "#"]),
    ],
)
def test_a_task_decides_what_of_a_pair_is_prompt_and_what_is_target(
    config: Config, task: str, expected: list[str]
) -> None:
    assert spell(decode(PAIR, task, config)) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("text_to_image", ["one\n\ntwo\n\nthree", "##"]),
        ("image_to_text", ["##", " one\n\ntwo\n\nthree"]),
        ("both", ["", "one# two\n\nthree#"]),
        ("interleaved", ["", "one# two\n\nthree#"]),
        ("text_only", ["", "one\n\ntwo\n\nthree"]),
        ("image_only", ["", "##"]),
    ],
)
def test_a_task_decides_the_order_of_a_document(config: Config, task: str, expected: list[str]) -> None:
    """Paragraphs are parted by an empty line, text after an image by a blank."""
    assert spell(decode(STORY, task, config)) == expected


def test_every_task_is_tested() -> None:
    assert set(TASKS) == {"text_to_image", "image_to_text", "both", "interleaved", "text_only", "image_only"}


@pytest.mark.parametrize("task", TASKS)
def test_images_are_inserted_in_the_interleaved_task_alone(config: Config, task: str) -> None:
    assert decode(PAIR, task, config).is_interleaved == (task == "interleaved")


@pytest.mark.parametrize("task", ["both", "interleaved", "image_only", "text_to_image"])
def test_latents_follow_the_document_and_not_the_names_of_files(config: Config, task: str) -> None:
    sample = decode(STORY, task, config)
    assert sample.latents[:, 0, 0, 0].tolist() == [-1.0, 1.0]
    assert (sample.tokens[sample.image_at] == TOKENIZER.image).all()
    assert (sample.tokens == TOKENIZER.image).sum() == 2


@pytest.mark.parametrize("task", ["interleaved", "image_to_text"])
def test_a_prompt_comes_first_and_is_no_target(config: Config, task: str) -> None:
    sample = decode(PAIR, task, config, prompt="say:")
    assert sample.tokens[: len("say:") + 1].tolist() == [TOKENIZER.bos, *b"say:"]
    assert not sample.is_target[: len("say:") + 1].any()
    expected = {"interleaved": ["say:", " a cat#"], "image_to_text": ["say:#", " a cat"]}
    assert spell(sample) == expected[task]


def test_special_tokens_in_a_caption_stay_text(config: Config) -> None:
    sample = decode(record(txt=b"<|image|><|eos|>", png=png(0)), "both", config)
    assert sample.tokens.tolist() == [TOKENIZER.bos, *b"<|image|><|eos|>", TOKENIZER.image]
    assert sample.image_at.tolist() == [17]


def test_empty_segments_are_left_out(config: Config) -> None:
    source = document(text(""), image("a.png"), text(""), text("end"), a_png=png(0))
    assert spell(decode(source, "both", config)) == ["", "# end"]


def test_a_json_without_segments_is_not_read_as_a_document() -> None:
    source = record(txt=b"a cat", png=png(0), json=b'{"width": 8}')
    assert [s.text for s in read_segments(source)] == ["a cat", None]


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp"])
def test_four_kinds_of_images_are_known(extension: str) -> None:
    first, second = read_segments(record(txt=b"a cat", **{extension: b"bytes"}))
    assert (first.text, second.image) == ("a cat", b"bytes")


def test_num_rows_counts_tokens_and_patches(config: Config) -> None:
    assert num_rows(decode(PAIR, "both", config), config.image) == 1 + 5 + 1 + 4


# What is refused, and how it is said.


def refusal(source: ShardRecord, config: Config, task: str = "both") -> str:
    with pytest.raises(ValueError) as error:
        decode(source, task, config)
    return str(error.value)


def test_a_named_image_that_is_not_there_is_named(config: Config) -> None:
    source = document(image("a.png"), image("b.png"), a_png=png(0))
    assert refusal(source, config) == (
        f"sample {KEY}: its segments name the image 'b.png', but it holds a.png, json; "
        "add the image or remove the segment"
    )


def test_an_image_that_is_not_named_is_named(config: Config) -> None:
    source = document(image("a.png"), a_png=png(0), b_png=png(0))
    assert refusal(source, config) == (
        f"sample {KEY}: its segments name 1 images (a.png) but it holds 2 (a.png, b.png); name each once"
    )


def test_an_image_that_is_named_twice_is_named(config: Config) -> None:
    source = document(image("a.png"), image("a.png"), a_png=png(0))
    assert refusal(source, config) == (
        f"sample {KEY}: its segments name 2 images (a.png, a.png) but it holds 1 (a.png); name each once"
    )


@pytest.mark.parametrize(
    ("source", "held"),
    [
        (record(png=b"x"), "png"),
        (record(txt=b"a cat"), "txt"),
        (record(txt=b"a cat", _0_png=b"x", _1_png=b"x"), "0.png, 1.png, txt"),
    ],
    ids=["no caption", "no image", "two images"],
)
def test_an_incomplete_pair_is_named_with_what_it_holds(config: Config, source: ShardRecord, held: str) -> None:
    assert refusal(source, config) == (
        f"sample {KEY}: a pair is one .txt and one image, but it holds {held}; "
        "add what is missing, or a .json with segments"
    )


@pytest.mark.parametrize("caption", [b"", b" \n\t "])
def test_an_empty_caption_is_named(config: Config, caption: bytes) -> None:
    assert refusal(record(txt=caption, png=png(0)), config) == (
        f"sample {KEY}: its caption is empty; remove the sample or write a caption"
    )


def test_a_caption_that_is_no_utf8_is_named(config: Config) -> None:
    assert refusal(record(txt=b"caf\xe9", png=png(0)), config).startswith(f"sample {KEY}: ")


def test_a_broken_json_is_named(config: Config) -> None:
    message = refusal(record(json=b'{"segments": [', png=png(0)), config)
    assert message.startswith(f"sample {KEY}: its .json is broken (")
    assert message.endswith("); write the sample again")


@pytest.mark.parametrize("entry", [{"type": "video"}, {"type": "image"}, {}, {"text": "no type"}])
def test_a_segment_that_is_neither_text_nor_image_is_named(config: Config, entry: dict[str, str]) -> None:
    assert refusal(document(entry), config).startswith(f"sample {KEY}: segment {entry!r} is neither text nor image")


@pytest.mark.parametrize(
    "segments",
    [[{"type": "text"}], [{"type": "text", "text": 3}], ["a cat"], [{"type": "image", "image": ["a.png"]}], None, 3],
    ids=["no text", "text is a number", "a string", "image is a list", "null", "a number"],
)
def test_a_malformed_document_is_named(config: Config, segments: Any) -> None:
    source = record(json=json.dumps({"segments": segments}).encode())
    assert refusal(source, config).startswith(f"sample {KEY}: ")


@pytest.mark.parametrize(
    ("task", "source"),
    [
        ("text_only", document(image("a.png"), a_png=png(0))),
        ("image_only", document(text("one"))),
        ("both", document()),
        ("text_to_image", document(text("one"))),
        ("image_to_text", document(image("a.png"), a_png=png(0))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_without_what_the_task_generates_is_named(config: Config, task: str, source: ShardRecord) -> None:
    assert refusal(source, config, task) == (
        f"sample {KEY}: nothing in it for task {task!r}; give its source another task"
    )


def test_a_broken_image_is_named_by_its_place(config: Config) -> None:
    source = document(image("a.png"), image("b.png"), a_png=png(0), b_png=b"broken")
    assert refusal(source, config).startswith(f"sample {KEY}, image 1: broken image (")


def test_an_image_of_another_size_is_named_by_its_place(config: Config) -> None:
    assert refusal(record(txt=b"a cat", png=png(0, (9, 8))), config).startswith(f"sample {KEY}, image 0: 9x8 pixels")


# Windows of overlong samples.

PATCHES = ImageConfig(channels=1, height=8, width=8, patch_size=4, time_conditioning="added")  # 4 rows


@st.composite
def overlong(draw: st.DrawFn) -> tuple[Sample, int]:
    """A sample with a prompt of at most 4 rows, and a limit of at least one row more."""
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=30))
    num_prompt = draw(st.integers(1, 4))
    tokens = np.array(
        [256, *range(num_prompt - 1), *(258 if is_image else i + 100 for i, is_image in enumerate(kinds))]
    )
    image_at = np.flatnonzero(tokens == 258)
    sample = Sample(
        key=KEY,
        tokens=tokens,
        is_target=np.arange(len(tokens)) >= num_prompt,
        image_at=image_at,
        latents=np.arange(len(image_at), dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8), dtype=np.float32),
        is_interleaved=True,
    )
    return sample, draw(st.integers(num_prompt + 1, max(num_prompt + 1, num_rows(sample, PATCHES) - 1)))


@given(overlong(), st.integers(0, 2**32 - 1))
def test_a_window_is_the_prompt_and_a_stretch_of_the_targets(case: tuple[Sample, int], seed: int) -> None:
    sample, max_rows = case
    window = cut_window(sample, max_rows, PATCHES, np.random.default_rng(seed))
    assert num_rows(window, PATCHES) <= max_rows
    prompt = sample.tokens[~sample.is_target].tolist()
    assert window.tokens[: len(prompt)].tolist() == prompt
    stretch = window.tokens[len(prompt) :].tolist()
    targets = sample.tokens[sample.is_target].tolist()
    assert any(targets[i : i + len(stretch)] == stretch for i in range(len(targets) + 1))
    assert (window.tokens[window.image_at] == 258).all()
    assert len(window.image_at) == (window.tokens == 258).sum()
    numbers = window.latents[:, 0, 0, 0].tolist()
    assert numbers == sorted(numbers)
    assert np.isin(window.latents, sample.latents).all()


def text_sample(num_targets: int) -> Sample:
    return Sample(
        key=KEY,
        tokens=np.arange(num_targets + 1),
        is_target=np.arange(num_targets + 1) > 0,
        image_at=np.zeros(0, dtype=np.int64),
        latents=np.zeros((0, 1, 8, 8), dtype=np.float32),
        is_interleaved=True,
    )


def test_windows_of_text_are_full_and_reach_every_token_alike() -> None:
    """Of ten tokens four fit: seven places to start, from the first token to the seventh, so that the last is read."""
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(700):
        window = cut_window(text_sample(10), 5, PATCHES, rng)
        assert len(window.tokens) == 5
        starts.append(int(window.tokens[1]))
    counts = np.bincount(starts, minlength=8)[1:]
    assert counts.sum() == 700
    assert len(counts) == 7
    assert counts.min() > 60


def test_a_prompt_that_fills_the_window_is_named(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, *range(9)], num_prompt=8, key=KEY)
    with pytest.raises(ValueError) as error:
        cut_window(sample, 8, PATCHES, np.random.default_rng(0))
    assert str(error.value) == f"sample {KEY}: its prompt alone needs 8 rows, the limit is 8"
