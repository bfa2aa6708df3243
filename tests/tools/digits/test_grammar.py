from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.codec import pixels_to_latent
from tools.digits.grammar import CAPTIONS, MAX_COUNT, WORDS, count_up, load_split, read_caption, read_count, read_images

SENTENCES = {caption.format(word): digit for caption in CAPTIONS for digit, word in enumerate(WORDS)}


def test_every_sentence_of_the_grammar_names_its_digit() -> None:
    assert len(SENTENCES) == 50
    assert {text: read_caption(text) for text in SENTENCES} == SENTENCES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seven",
        "a handwritten",
        "a handwritten ",
        "a handwritten seven ",
        " a handwritten seven",
        "a handwritten  seven",
        "a handwritten seven\n",
        "A handwritten seven",
        "a handwritten sevenseven",
        "a handwritten seven the digit seven",
        "a handwritten ten",
        "a handwritten 7",
        "a handwritten {}",
        "the digit seven.",
        "this is the digit seven",
    ],
)
def test_other_sentences_name_no_digit(text: str) -> None:
    assert read_caption(text) is None


@given(st.sampled_from(sorted(SENTENCES)), st.data())
def test_a_sentence_with_one_letter_changed_is_no_sentence(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii"))
    changed = text[:place] + letter + text[place + 1 :]
    assert read_caption(changed) == SENTENCES.get(changed)


def test_exactly_one_to_five_consecutive_words_count_up() -> None:
    good = {
        tuple(WORDS[start : start + length]): list(range(start, start + length))
        for length in range(1, MAX_COUNT + 1)
        for start in range(10 - length + 1)
    }
    assert len(good) == 10 + 9 + 8 + 7 + 6
    for length in range(4):
        for words in itertools.product([*WORDS, "ten", ""], repeat=length):
            assert read_count(list(words)) == good.get(words)
    assert all(read_count(list(words)) == digits for words, digits in good.items())
    assert read_count(list(WORDS[:6])) is None  # too many
    assert read_count(["one two"]) is None
    assert read_count(["four", "five", "six", "seven", "nine"]) is None


def test_counts_are_runs_of_one_to_five_digits() -> None:
    rng = np.random.default_rng(0)
    runs = [count_up(rng) for _ in range(2000)]
    assert {len(run) for run in runs} == {1, 2, 3, 4, 5}
    assert min(run[0] for run in runs) == 0
    assert max(run[-1] for run in runs) == 9


def test_the_splits_share_no_image_and_together_are_all() -> None:
    (train, train_labels), (heldout, heldout_labels) = load_split("train"), load_split("heldout")
    assert (len(train), len(heldout)) == (1438, 359)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in heldout}
    assert set(train_labels) == set(heldout_labels) == set(range(10))
    assert train.dtype == np.uint8
    assert (train.min(), train.max()) == (0, 255)


def test_the_classifier_reads_digits_it_has_not_seen() -> None:
    images, labels = load_split("heldout")
    latents = np.stack([pixels_to_latent(image) for image in images])
    assert (read_images(latents) == labels).mean() >= 0.98


def test_the_classifier_clips_what_lies_beyond_the_pixels() -> None:
    images, _ = load_split("heldout")
    latents = np.stack([pixels_to_latent(image) for image in images])
    beyond = np.where(np.abs(latents) >= 1.0, 3.0 * latents, latents)
    assert (read_images(beyond) == read_images(latents)).all()


def test_no_images_are_read_as_no_digits() -> None:
    found = read_images(np.zeros((0, 1, 8, 8), dtype=np.float32))
    assert found.shape == (0,)
    assert found.dtype == np.int64
