from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer, train_ranks, write_ranks
from tools.digits.grammar import load_split, read_images
from tools.digits.judging import (
    check_digits,
    count_parts,
    distance,
    judge_interleaved,
    judge_single,
    read_metrics,
)

Write = Callable[..., Canvas]


@pytest.fixture(scope="module")
def write(config: Config, tokenizer: Tokenizer) -> Write:
    """A finished document: texts, and for a number an image of this digit."""
    images, labels = load_split("train")
    latents = np.stack([pixels_to_latent(image) for image in images])
    seen = read_images(latents)
    digit = {d: latents[np.flatnonzero((labels == d) & (seen == d))[0]] for d in range(10)}

    def make(*parts: str | int) -> Canvas:
        prompt: list[int | tuple[str, np.ndarray]] = []
        for part in parts:
            prompt += tokenizer.encode(part) if isinstance(part, str) else [("image", digit[part])]
        return blank_canvas(prompt, tokenizer, config.modality, seed=0, index=0)

    return make


@pytest.mark.parametrize(
    ("parts", "valid_text", "has_image", "agreement"),
    [
        (["a handwritten seven", 7], 1, 1, 1),
        ([7, " the digit seven"], 1, 1, 1),  # in either order
        (["a handwritten seven", 3], 1, 1, 0),  # another digit
        (["a handwritten seven"], 1, 0, 0),  # no image
        (["a handwritten seven", 7, 7], 1, 0, 0),  # one too many
        (["a handwriten seven", 7], 0, 1, 0),  # no word
        (["a handwritten seven seven", 7], 0, 1, 0),
        ([7], 0, 1, 0),  # no text
        ([], 0, 0, 0),
    ],
)
def test_a_captioned_digit_is_right_if_text_and_image_agree(
    parts: list[str | int], valid_text: int, has_image: int, agreement: int, write: Write, tokenizer: Tokenizer
) -> None:
    verdict = judge_single([write(*parts)], tokenizer)
    assert verdict == {"valid_text": valid_text, "has_image": has_image, "agreement": agreement}


def test_a_caption_torn_apart_by_its_image_is_no_sentence(write: Write, tokenizer: Tokenizer) -> None:
    assert judge_single([write("a handwritten", 7, " seven")], tokenizer)["valid_text"] == 0.0


@pytest.mark.parametrize(
    ("parts", "valid_text", "has_image", "agreement", "right"),
    [
        (["count up: three", 3, " four", 4, " five", 5], 1, 1, 1.0, 1),
        (["count up: nine", 9], 1, 1, 1.0, 1),
        (["count up: three", 3, " four", 7], 1, 1, 0.5, 0),  # one wrong image
        (["count up: three", 4, " four", 3], 1, 1, 0.0, 0),  # both there, in the wrong order
        (["count up: three", 3, " five", 5], 0, 1, 1.0, 0),  # a number left out
        (["count up: four", 4, " three", 3], 0, 1, 1.0, 0),  # down
        (["count up: three", 3, " fore", 4], 0, 1, 0.5, 0),  # no word
        (["count up: three four", 4], 0, 1, 0.0, 0),  # an image is missing, which makes one part of two words
        (["count up: three", 3, " four"], 1, 0, 1.0, 0),  # the last image is missing
        (["count up: three", 3, 4, " four", 4], 1, 0, 2 / 3, 0),  # an image too many
        (["count up:", 3, " three"], 1, 0, 0.0, 0),  # the image before its word
        (["count up: zero", 0, " one", 1, " two", 2, " three", 3, " four", 4, " five", 5], 0, 1, 1.0, 0),  # six
    ],
)
def test_a_counting_document_is_right_if_all_of_it_is(
    parts: list[str | int],
    valid_text: int,
    has_image: int,
    agreement: float,
    right: int,
    write: Write,
    tokenizer: Tokenizer,
) -> None:
    assert judge_interleaved([write(*parts)], tokenizer) == {
        "valid_text": valid_text,
        "has_image": has_image,
        "agreement": round(agreement, 4),
        "documents_right": right,
    }


def test_shares_are_of_documents_but_agreement_is_of_images(write: Write, tokenizer: Tokenizer) -> None:
    documents = [
        write("count up: three", 3, " four", 4, " five", 5),
        write("count up: one", 2),
        write("count up: two", 2, " three"),
        write("count up:"),
    ]
    assert judge_interleaved(documents, tokenizer) == {
        "valid_text": 0.75,
        "has_image": 0.75,  # in the empty one every word, of none, is followed by an image
        "agreement": 0.8,
        "documents_right": 0.25,
    }


@pytest.mark.parametrize("parts", [["count up:"], ["count up: three"]])
def test_documents_without_images_agree_in_nothing(parts: list[str], write: Write, tokenizer: Tokenizer) -> None:
    verdict = judge_interleaved([write(*parts)], tokenizer)
    assert verdict["agreement"] == 0.0  # and not NaN, which is no JSON
    assert verdict["documents_right"] == 0.0


def test_the_prompt_is_no_part_of_a_counting_document(write: Write, tokenizer: Tokenizer) -> None:
    assert count_parts(write("count up: three", 3, " four"), tokenizer) == ["three", ("image", 0), "four"]
    assert count_parts(write("count up:", 3), tokenizer) == [("image", 0)]
    assert count_parts(write("count up:"), tokenizer) == []


def test_the_length_of_a_training_is_that_of_its_metrics(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 0.5, "padding": 0.1 * step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert found == {"steps": 3, "train_seconds": 1.5, "padding": pytest.approx(0.2)}


def test_a_model_of_something_else_is_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    check_digits(tmp_path, config, tokenizer)
    wide = dataclasses.replace(config.modality["image"], channels=16)
    for modalities, found in (({"image": wide}, r"\{'image': \(16, 8, 8\)\}"), ({}, "none")):
        with pytest.raises(ValueError, match=f"its pieces are {found}, but digits are images of 1x8x8; "):
            check_digits(tmp_path, dataclasses.replace(config, modality=modalities), tokenizer)
    write_ranks(tmp_path / "other.tiktoken", train_ranks(["a red car", "a blue car"], vocab_size=262))
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "other.tiktoken"))
    other = dataclasses.replace(config, data=data)
    with pytest.raises(ValueError, match=r"other\.tiktoken is not the vocabulary of digits"):
        check_digits(tmp_path, other, load_tokenizer(data.tokenizer, config.modality))


def test_images_are_as_far_apart_as_their_means_and_deviations() -> None:
    images = np.random.default_rng(0).normal(size=(200, 1, 4, 4))
    deviations = images.reshape(200, 16).std(0, ddof=1)
    assert distance(images, images[::-1]) == pytest.approx(0.0, abs=1e-4)
    assert distance(images + 0.5, images) == pytest.approx(16 * 0.25, abs=1e-4)
    centred = images - images.mean(0)
    assert distance(3.0 * centred, centred) == pytest.approx(4.0 * (deviations**2).sum(), abs=1e-4)
    assert distance(images[:8], images) > 1.0  # of fewer images than pixels
