from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.times import TimeLaw
from oneflow_dist.making import Making
from tests.modalities import SOUND
from tests.sampling import sampling


def begin(config: Config, count: int, kind: str = "image") -> Making:
    """So many pieces to make, behind the first token, as they are before the first step."""
    tokenizer = load_tokenizer("bytes", config.modality)
    return blank_canvas([(kind, None)] * count, tokenizer, config.modality, seed=0, index=3).making[kind]


def advance(making: Making, step_size: float, step: int = 1, shift: float = 1.0, **changes: Any) -> Making:
    """All along velocity 1."""
    velocity = np.ones_like(making.noisy().velocity)
    return making.advance(velocity, step_size, shift, sampling(**changes), np.random.default_rng(step), step)


def test_a_last_step_ends_at_time_one(config: Config) -> None:
    before = advance(begin(config, 1), 0.9)
    after = advance(before, 0.25, step=2)
    np.testing.assert_allclose(after.pieces.patches, before.pieces.patches + 0.1, rtol=1e-5)
    assert after.pieces.time.tolist() == [1.0]
    assert after.end.tolist() == [2]
    assert not after.is_moving.any()


def test_what_is_done_is_left_alone(config: Config) -> None:
    done = advance(begin(config, 2), 1.0)
    assert advance(done, 0.5, step=2) is done


def test_a_spawned_image_is_standard_normal_noise(config: Config) -> None:
    making, slots = begin(config, 0), np.arange(60)
    spawned = making.insert(slots, np.full(60, making.token), np.random.default_rng(0)).pieces
    assert spawned.token.tolist() == (2 * slots + 1).tolist()
    assert spawned.time.tolist() == [0.0] * 60
    assert spawned.patches.size > 3000
    assert spawned.patches.mean() == pytest.approx(0.0, abs=0.06)
    assert spawned.patches.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("num_steps", [1, 4, 7, 50])
def test_larger_pieces_follow_the_law_of_their_modality_and_end_with_the_others(
    make_config: Callable[..., Config], num_steps: int
) -> None:
    """Clocks go evenly; the time of a piece of four rows, of twice as many to a side as `shift_rows`, lags behind."""
    config = make_config(*SOUND, "modality.image.shift_rows=1")
    law = TimeLaw.of(config.modality["image"])
    images, sounds = begin(config, 1), begin(config, 1, "sound")
    start = images.pieces.patches
    for step in range(1, num_steps + 1):
        clock = np.array([(step - 1) / num_steps])
        np.testing.assert_allclose(images.pieces.time, law.at_clock(clock, images.pieces), atol=1e-9)
        np.testing.assert_allclose(images.pieces.time, clock / (2.0 - clock), atol=1e-9)
        np.testing.assert_allclose(sounds.pieces.time, clock, atol=1e-9)
        assert images.clock_left(1.0) == pytest.approx(1.0 - clock.item())
        assert images.is_moving.all()
        assert sounds.is_moving.all()
        images, sounds = (advance(making, 1.0 / num_steps, step) for making in (images, sounds))
    assert images.end.tolist() == sounds.end.tolist() == [num_steps]
    np.testing.assert_allclose(images.pieces.patches, start + 1.0, atol=1e-4)  # the way is still one unit of time
