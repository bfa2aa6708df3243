"""Where the velocity is known in closed form: how near the solvers come to the flow, and to the law of the data."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.making import Making
from tests.sampling import sampling

MEAN, STD = 0.7, 0.25  # of the data, all elements by themselves


def exact_velocity(patches: np.ndarray, time: float) -> np.ndarray:
    """E[Y_1 - Y_0 | Y_t] of normal data."""
    variance = (time * STD) ** 2 + (1.0 - time) ** 2
    return MEAN + (time * STD**2 - (1.0 - time)) / variance * (patches - time * MEAN)


def begin(config: Config, count: int = 1) -> Making:
    tokenizer = load_tokenizer("bytes", config.modality)
    canvas = blank_canvas([("image", None)] * count, tokenizer, config.modality, seed=0, index=0)
    return canvas.making["image"]


def make(making: Making, num_steps: int, late: bool = False, **changes: Any) -> Making:
    """Along the exact velocity, in steps that are even, or smaller and smaller."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, num_steps + 1) / num_steps
    ends = 1.0 - (1.0 - ends) ** 1.5 if late else ends
    for step, size in enumerate(np.diff(ends, prepend=0.0), start=1):
        velocity = exact_velocity(making.pieces.patches, float(making.pieces.time[0])).astype(np.float32)
        making = making.advance(velocity, float(size), 1.0, sampling(**changes), rng, step)
    assert not making.is_moving.any()
    return making


def error(config: Config, num_steps: int, late: bool, solver: str) -> float:
    """Of the end of the flow, which takes noise y to MEAN + STD y."""
    start = begin(config)
    end = make(start, num_steps, late, solver=solver)
    return float(np.abs(end.pieces.patches - (MEAN + STD * start.pieces.patches)).mean())


@pytest.mark.parametrize("late", [False, True])
def test_eulers_error_halves_with_twice_the_steps_and_heuns_quarters(config: Config, late: bool) -> None:
    euler, heun = (
        [error(config, num_steps, late, solver) for num_steps in (32, 64, 128)] for solver in ("euler", "heun")
    )
    for one, two in itertools.pairwise(euler):
        assert 0.4 < two / one < 0.6
    for one, two in itertools.pairwise(heun):
        assert two / one < 0.32
    assert heun[0] < 0.25 * euler[0]


def test_noise_that_is_exchanged_leaves_the_law_and_loosens_the_end_from_the_start(config: Config) -> None:
    start = begin(config, 200)
    assert start.pieces.patches.size >= 10_000
    ends = {churn: make(start, 400, churn=churn).pieces.patches for churn in (0.0, 1.0, 2.0)}
    correlations = [np.corrcoef(start.pieces.patches.ravel(), end.ravel())[0, 1] for end in ends.values()]
    assert correlations[0] == pytest.approx(1.0, abs=1e-3)
    assert correlations[0] > correlations[1] + 0.2 > correlations[2] + 0.25
    for end in ends.values():
        assert end.mean() == pytest.approx(MEAN, abs=0.02)
        assert end.std() == pytest.approx(STD, rel=0.06)


def test_a_stochastic_step_to_the_end_adds_no_noise(config: Config) -> None:
    start = begin(config)
    velocity = exact_velocity(start.pieces.patches, 0.0).astype(np.float32)
    plain, churned = (
        start.advance(velocity, 1.0, 1.0, sampling(churn=churn), np.random.default_rng(0), 1) for churn in (0.0, 5.0)
    )
    np.testing.assert_allclose(churned.pieces.patches, plain.pieces.patches, atol=1e-6)


def test_pieces_taken_back_are_as_noisy_as_those_of_that_time(config: Config) -> None:
    """From time .8 to .3: normal, of the mean and the variance that noising gives the data there."""
    making = begin(config, 200)
    rng = np.random.default_rng(1)
    data = MEAN + STD * rng.standard_normal(making.pieces.patches.shape)
    later = 0.8 * data + 0.2 * rng.standard_normal(data.shape)
    count = len(making.pieces)
    pieces = replace(making.pieces, patches=later.astype(np.float32), time=np.full(count, 0.8))
    back = replace(making, pieces=pieces).rewind(0.5, np.ones(count, dtype=bool), np.ones(count + 1, dtype=bool), rng)
    np.testing.assert_allclose(back.pieces.time, 0.3)
    assert back.pieces.patches.mean() == pytest.approx(0.3 * MEAN, abs=0.02)
    assert back.pieces.patches.std() == pytest.approx(math.hypot(0.3 * STD, 0.7), rel=0.02)
    correlation = np.corrcoef(back.pieces.patches.ravel(), data.ravel())[0, 1]
    assert correlation == pytest.approx(0.3 * STD / math.hypot(0.3 * STD, 0.7), abs=0.03)


def test_pieces_go_with_their_tokens_and_those_that_were_asked_for_stay_as_they_are(config: Config) -> None:
    making = begin(config, 4)
    pieces = replace(making.pieces, time=np.array([0.6, 0.2, 0.5, 0.1]))
    is_written = np.array([True, True, True, False])
    is_kept = np.array([True, True, False, True, True])  # the second piece's token goes
    back = replace(making, pieces=pieces).rewind(0.5, is_written, is_kept, np.random.default_rng(0))
    np.testing.assert_allclose(back.pieces.time, [0.1, 0.0, 0.1])
    assert back.pieces.token.tolist() == [1, 2, 3]
    own = pieces.patches.reshape(4, -1)
    np.testing.assert_array_equal(back.pieces.patches.reshape(3, -1)[2], own[3])
