"""With exact heads the sampler reaches the data. All texts are enumerated: nothing here is random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, Prediction
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from tools.experiments.toys import (
    FIX,
    LINEAR,
    VAR,
    Weight,
    at_any_extended_time,
    at_any_time,
    at_time,
    distance,
    law_after,
    noised,
    settings_of,
)

PAPER = {"time_power": 1.0, "firing": "independent"}


CUBE = KeepSchedule(kind="power", exponent=3.0)
TABLE = {
    "variable length, heads that know the time": (VAR, LINEAR, at_time, [0.700, 0.413, 0.196, 0.125, 0.091, 0.041]),
    "the same, cubic schedule": (VAR, CUBE, at_time, [0.700, 0.577, 0.366, 0.291, 0.233, 0.117]),
    "heads that know no time": (VAR, LINEAR, at_any_time, [0.700, 0.419, 0.284, 0.260, 0.234, 0.243]),
    "the same, tau in [0, 2]": (VAR, LINEAR, at_any_extended_time, [0.700, 0.499, 0.376, 0.340, 0.311, 0.233]),
    "fixed length": (FIX, LINEAR, at_time, [1.0, 0.716, 0.448, 0.360, 0.304, 0.193]),
}


@pytest.fixture
def _unchecked(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with unchecked():
        yield


@pytest.mark.parametrize(("data", "schedule", "weight", "expected"), TABLE.values(), ids=TABLE)
@pytest.mark.usefixtures("_unchecked")
def test_distance_to_the_data_after_n_steps_with_exact_heads(
    data: dict[str, float], schedule: KeepSchedule, weight: Weight, expected: list[float]
) -> None:
    """Total variation for N = 1, 2, 4, 6, 8, 16; the sampler of the paper."""
    ways = [settings_of(num_steps, **PAPER) for num_steps in (1, 2, 4, 6, 8, 16)]
    distances = [distance(law_after(data, schedule, weight, own), data) for own in ways]
    assert distances == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (VAR, {"firing": "independent"}, [0.141, 0.064, 0.032]),
        (VAR, {"time_power": 1.0}, [0.189, 0.059, 0.022]),
        (VAR, {}, [0.152, 0.0435, 0.0202]),
        (FIX, {"firing": "independent"}, [0.385, 0.245, 0.143]),
        (FIX, {"time_power": 1.0}, [0.0, 0.0, 0.0]),
        (FIX, {}, [0.009, 0.0007, 0.0001]),
    ],
)
@pytest.mark.usefixtures("_unchecked")
def test_distance_with_smaller_late_steps_and_with_one_draw_for_all_slots(
    data: dict[str, float], changes: dict[str, Any], expected: list[float]
) -> None:
    """Total variation for N = 4, 8 and 16, where the paper's sampler has .196, .091, .041 and .448, .304, .193."""
    laws = [law_after(data, LINEAR, at_time, settings_of(num_steps, **changes)) for num_steps in (4, 8, 16)]
    assert [distance(law, data) for law in laws] == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("weight", "expected"), [(at_time, [0.95, 1.77, 2.18, 2.22]), (at_any_time, [0.86, 1.60, 2.13, 2.38])]
)
@pytest.mark.usefixtures("_unchecked")
def test_without_the_time_texts_grow_with_the_number_of_steps(weight: Weight, expected: list[float]) -> None:
    """Mean length for N = 1, 2, 4, 6; the data's is 2.20."""
    ways = [settings_of(num_steps, **PAPER) for num_steps in (1, 2, 4, 6)]
    laws = [law_after(VAR, LINEAR, weight, own) for own in ways]
    means = [sum(len(text) * prob for text, prob in law.items()) for law in laws]
    assert means == pytest.approx(expected, abs=0.006)


# Corrections: back by noising, on by the sampler.


def corrected(law: dict[str, float], data: dict[str, float], time: float, steps: int, cycles: int) -> list[float]:
    """The distance to the data after each cycle."""
    found = []
    for _ in range(cycles):
        law = law_after(data, LINEAR, at_time, settings_of(steps), noised(law, time), time)
        found.append(distance(law, data))
    return found


@pytest.mark.usefixtures("_unchecked")
def test_noising_takes_the_law_of_the_data_from_one_time_to_an_earlier_one() -> None:
    """Each letter stays with kappa(s) / kappa(t); that is exact, whatever comes next."""
    there = noised(VAR, 0.8)
    assert distance(noised(there, 0.3 / 0.8), noised(VAR, 0.3)) < 1e-15


WRONG = {"aaaa": 0.5, "b": 0.5}


@pytest.mark.parametrize(("steps", "bound"), [(8, 0.04), (32, 0.011)])
@pytest.mark.usefixtures("_unchecked")
def test_corrections_lead_from_a_wrong_law_to_the_data(steps: int, bound: float) -> None:
    """To where one pass of as many steps ends or nearer, and no further off with more cycles."""
    distances = corrected(WRONG, VAR, 0.6, steps, 12)
    assert distances[0] < 0.5 * distance(WRONG, VAR)
    assert distances[-1] < bound
    assert distances[-1] == pytest.approx(distances[-2], abs=0.002)


# An image says what text is still to come, and how late it is says how likely that is: two documents, each with one
# number for an image, about -1.5 where that is all, about 1.5 where an "a" follows.

MIDDLE, STD, LETTER = 1.5, 0.2, 97


class Exact(OneFlow):
    """Posterior means: what is missing, and where the image flows, with the text time or averaged over it."""

    knows_text_time = True
    image_token = 0

    def forward(self, batch: PackedBatch) -> Prediction:
        (images,) = batch.pieces
        num_tokens, text_time = len(batch.tokens), batch.text_time.double()
        filled, rate, image_share = torch.zeros(3, num_tokens, dtype=torch.float64)
        first = torch.searchsorted(batch.token_sequence, torch.arange(len(text_time)))
        left = 1.0 - text_time
        has_image = torch.zeros(len(text_time), dtype=torch.bool)
        has_image[images.sequence] = True
        has_letter = torch.zeros(len(text_time), dtype=torch.bool)
        has_letter[batch.token_sequence[batch.tokens == LETTER]] = True
        filled[first] = (~has_image).double()
        rate[first] = torch.where(has_letter, 1.0, 1.0 + left / (1.0 + left))
        image_share[first] = 1.0 / rate[first]

        y, time = images.patches.double().squeeze(1), images.time.double()
        sequence = images.sequence
        missing = left[sequence] if self.knows_text_time else 0.5 * (1.0 - time) ** 2
        has_letter = has_letter[sequence]
        velocity = _mixture_velocity(y, time, torch.where(has_letter, 1e30, missing))
        slot = torch.searchsorted(batch.token_row, images.patch_row) - 1
        weight = left[sequence] * torch.exp(_log_ratio(y, time))
        filled[slot] = torch.where(has_letter, 0.0, weight / (1.0 + weight))
        rate[slot] = 1.0
        return Prediction(
            zero_logit=-filled.logit().clamp(-60, 60).float(),
            log_rate=rate.clamp(min=1.0).log().float(),
            bag_loss=torch.zeros(()),
            velocity=(velocity.float()[:, None],),
            slot_hidden=image_share.float()[:, None].expand(-1, self.embed.embedding_dim),
        )

    def draw_tokens(self, slot_hidden: Tensor, noise_key: Tensor, temperature: float, limit: int) -> Tensor:
        return torch.where((noise_key % 2**20) / 2**20 < slot_hidden[:, 0], self.image_token, LETTER)


def _log_ratio(y: Tensor, time: Tensor) -> Tensor:
    """Of the densities of a noisy image with and without a letter to come."""
    return 2.0 * time * MIDDLE * y / ((time * STD) ** 2 + (1.0 - time) ** 2)


def _mixture_velocity(y: Tensor, time: Tensor, odds: Tensor) -> Tensor:
    """E[Y_1 - Y_0 | Y_t], with these odds of the letter before the image is looked at."""
    share = torch.sigmoid(odds.log() + _log_ratio(y, time))
    slope = (time * STD**2 - (1.0 - time)) / ((time * STD) ** 2 + (1.0 - time) ** 2)
    mean = MIDDLE * (2.0 * share - 1.0)
    return mean + slope * (y - time * mean)


@pytest.mark.parametrize("knows_text_time", [True, False])
@pytest.mark.usefixtures("_unchecked")
def test_the_velocity_needs_the_text_time(make_config: Callable[..., Config], knows_text_time: bool) -> None:
    """Documents that end with the image of one that goes on: of these 600 some .5 % with it, 3.5 % without."""
    config = make_config("modality.image.shape=[1,1]", "modality.image.patch=[1,1]")
    tokenizer = load_tokenizer("bytes", config.modality)
    config = replace(config, sampling=settings_of(16, time_power=1.0))
    model = Exact(config)
    model.knows_text_time, model.image_token = knows_text_time, tokenizer.piece_of["image"]
    canvases = [blank_canvas([], tokenizer, config.modality, 5, index) for index in range(600)]
    ends = [canvas for canvas in generate(model, canvases, config, tokenizer) if len(canvas.tokens) == 2]
    assert 240 < len(ends) < 360
    wrong = sum(latent.item() > 0.0 for canvas in ends for latent in canvas.latents("image"))
    assert wrong < 9 if knows_text_time else wrong > 12
