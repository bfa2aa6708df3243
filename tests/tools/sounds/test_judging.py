from __future__ import annotations

import numpy as np
import pytest

from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.sound import RANGE, decode_sound, encode_sound
from tools.digits.grammar import load_split, read_images
from tools.sounds.judging import find_picture, read_sounds, read_videos, say
from tools.sounds.variations import BANDS, DIRECTIONS, FRAMES, RATE, STEPS, scroll


@pytest.fixture(scope="module")
def sounds() -> tuple[np.ndarray, np.ndarray]:
    """Variations that the classifier has not heard, and their digits."""
    digits = np.arange(10).repeat(20)
    return np.stack([say(int(d), np.random.default_rng([1, n])) for n, d in enumerate(digits)]), digits


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_split("heldout")
    return np.stack([pixels_to_latent(image) for image in pixels]), labels


def move(images: np.ndarray, direction: tuple[int, int]) -> np.ndarray:
    return scroll(np.repeat(images[:, :, None], STEPS, axis=2), direction)


def test_the_classifier_hears_digits_in_sounds_it_has_not_heard(sounds: tuple[np.ndarray, np.ndarray]) -> None:
    latents, digits = sounds
    assert latents.shape == (200, BANDS, FRAMES)
    assert (read_sounds(latents) == digits).mean() >= 0.98


def test_the_classifier_hears_them_soft_faint_and_noisy(sounds: tuple[np.ndarray, np.ndarray]) -> None:
    latents, digits = sounds
    noise = np.random.default_rng(0).standard_normal(latents.shape)
    for changed in (np.maximum(latents - 0.25 * RANGE, -1), 0.6 * latents - 0.4, latents + 0.15 * RANGE * noise):
        assert (read_sounds(changed) == digits).mean() >= 0.98


def test_spoken_digits_become_files_of_which_the_same_is_heard(sounds: tuple[np.ndarray, np.ndarray]) -> None:
    latents, digits = sounds[0][::10], sounds[1][::10]
    heard = [encode_sound(decode_sound(latent, RATE), RATE, BANDS, "x") for latent in latents]
    assert np.array_equal(read_sounds(heard), digits)
    assert max(np.abs(x - y).mean() for x, y in zip(heard, latents, strict=True)) < 0.01 * RANGE


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_moving_digits_are_read_as_well_as_still_ones(
    direction: tuple[int, int], images: tuple[np.ndarray, np.ndarray]
) -> None:
    latents, digits = images
    found = read_videos(move(latents, direction))
    assert (found == digits).mean() >= 0.98
    assert np.array_equal(found, read_images(latents))


def test_the_picture_that_moves_is_found_and_how_far_frames_are_from_it(images: tuple[np.ndarray, np.ndarray]) -> None:
    latents, _ = images
    rng = np.random.default_rng(0)
    for image, video in zip(latents[:20], move(latents[:20], (-2, 0)), strict=True):
        picture, error = find_picture(video)
        np.testing.assert_allclose(picture, image, atol=1e-6)
        assert error < 1e-6
        _, noisy = find_picture(video + 0.1 * rng.standard_normal(video.shape))
        assert noisy == pytest.approx(0.1 * (1.0 - 1.0 / STEPS) ** 0.5, rel=0.15)  # about the mean of the frames
        _, jumping = find_picture(video[:, [0, 2, 1, 3]])
        assert jumping > 0.2


def test_nothing_is_read_as_no_digits() -> None:
    for found in (read_sounds([]), read_videos([]), read_sounds(np.zeros((0, BANDS, FRAMES)))):
        assert found.shape == (0,)
        assert found.dtype == np.int64
