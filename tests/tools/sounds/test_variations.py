from __future__ import annotations

import numpy as np
import pytest

from tools.sounds.variations import BANDS, DIRECTIONS, FRAMES, STEPS, load_recording, scroll, speak


def loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(sound**2)))


def test_every_digit_has_a_recording_of_its_own() -> None:
    recordings = [load_recording(digit) for digit in range(10)]
    assert len({recording.tobytes() for recording in recordings}) == 10
    for recording in recordings:
        assert 1800 < len(recording) < FRAMES * BANDS
        assert 0.4 < np.abs(recording).max() < 0.7


@pytest.mark.parametrize("digit", [0, 8])  # the longest and the shortest
def test_sounds_are_of_one_length_and_never_clipped(digit: int) -> None:
    sounds = [speak(digit, np.random.default_rng(seed)) for seed in range(50)]
    assert {sound.shape for sound in sounds} == {(2816,)}
    assert len({sound.tobytes() for sound in sounds}) == 50
    assert max(np.abs(sound).max() for sound in sounds) < 1
    loudest, softest = (function(loudness(sound) for sound in sounds) for function in (max, min))
    assert 2 < loudest / softest < 3.5


def test_the_same_generator_says_the_same() -> None:
    assert np.array_equal(speak(3, np.random.default_rng(1)), speak(3, np.random.default_rng(1)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_picture_moves_a_pixel_a_frame_and_comes_in_again(direction: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    rows, columns = direction
    frames = scroll(np.stack([picture] * STEPS), direction)
    assert np.array_equal(frames[0], picture)
    for before, after in zip(frames, [*frames[1:], picture], strict=True):
        row, column = (3 + rows) % 8, (7 + columns) % 8
        assert after[row, column] == before[3, 7]
        assert np.array_equal(after, np.roll(before, direction, axis=(0, 1)))
    assert (scroll(frames[None], (-rows, -columns)) == picture).all()
