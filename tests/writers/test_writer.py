from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.writers.writer import find_room, step_size, velocities_of
from tests.modalities import SOUND, VIDEO, VISION
from tests.sampling import sampling


@pytest.fixture(scope="module")
def kinds(make_config: Callable[..., Config]) -> Config:
    return make_config(*SOUND, *VIDEO, *VISION)


@pytest.fixture(scope="module")
def tokens_of(kinds: Config) -> Tokenizer:
    return load_tokenizer(kinds.data.tokenizer, kinds.modality)


def test_tokens_take_one_row_and_images_theirs_too(config: Config, tokenizer: Tokenizer) -> None:
    """An image has four rows and its token, and BOS one; an image that does not fit keeps no word away."""
    image, word = tokenizer.piece_of["image"], 65
    for max_rows, tokens, fits in ((7, [word] * 6, 6), (7, [word] * 7, 6), (6, [image], 1), (5, [image, word], 1)):
        canvas = blank_canvas([], tokenizer, config.modality, 1, 0)
        assert find_room(canvas, np.array(tokens), max_rows).sum() == fits, (max_rows, tokens)
        assert canvas.hit_cap == (fits < len(tokens))


def test_a_full_document_favours_none_of_its_sides(config: Config, tokenizer: Tokenizer) -> None:
    """Of ten tokens two fit: each with a chance of a fifth."""
    counts = np.zeros(10)
    for index in range(2000):
        canvas = blank_canvas([], tokenizer, config.modality, 1, index)
        counts += find_room(canvas, np.full(10, 65), 3)
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


def test_what_is_only_given_does_not_fit_and_takes_no_room_from_others(kinds: Config, tokens_of: Tokenizer) -> None:
    """A sound and a video have four rows and a token each."""
    vision, sound, video = (tokens_of.piece_of[kind] for kind in ("vision", "sound", "video"))
    for max_rows, tokens, fits in (
        (12, [vision, sound, 65, vision], [False, True, True, False]),
        (11, [sound, video, vision], [True, True, False]),
        (6, [vision, vision, sound], [False, False, True]),
    ):
        canvas = blank_canvas([], tokens_of, kinds.modality, 1, 0)
        assert find_room(canvas, np.array(tokens), max_rows).tolist() == fits
        assert not canvas.hit_cap
    canvas = blank_canvas([], tokens_of, kinds.modality, 1, 0)
    assert find_room(canvas, np.array([vision, sound, video]), 7).sum() == 1
    assert canvas.hit_cap


def test_each_document_gets_the_velocities_of_its_patches(make_noisy: Callable[..., NoisySample]) -> None:
    rng = np.random.default_rng(0)
    samples = [make_noisy(rng, num_images=number) for number in (2, 0, 1)]
    counts = [len(sample.pieces[0].pieces.patches) for sample in samples]
    velocity = torch.randn(sum(counts), 16)
    said = Prediction(
        zero_logit=None, log_rate=None, bag_loss=torch.zeros(()), velocity=(velocity,), slot_hidden=velocity
    )
    found = velocities_of(samples, said)
    assert [[len(part) for part in own] for own in found] == [[count] for count in counts]
    assert np.array_equal(np.concatenate([own[0] for own in found]), velocity.numpy())


def test_a_text_comes_to_its_end_in_as_many_steps_as_are_asked_for(config: Config, tokenizer: Tokenizer) -> None:
    for power in (1.0, 1.5):
        own, canvas = sampling(steps=7, time_power=power), blank_canvas([], tokenizer, config.modality, 0, 0)
        sizes = []
        for _ in range(7):
            sizes.append(step_size(canvas, own))
            canvas.text_time += sizes[-1]
        assert canvas.text_time == pytest.approx(1.0)
        assert sizes == sorted(sizes, reverse=True) or power == 1.0
