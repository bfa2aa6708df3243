from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import writer_of
from oneflow_dist.writers.insertion import Insertion, draw_fires
from tests.messages import naming
from tests.sampling import sampling


def says(canvases: list[Canvas], filled_prob: float, rate: float) -> Prediction:
    number = sum(len(canvas.tokens) for canvas in canvases)
    return Prediction(
        zero_logit=torch.full((number,), 1.0 - filled_prob).logit(),
        log_rate=torch.full((number,), rate).log(),
        bag_loss=torch.zeros(()),
        velocity=(),
        slot_hidden=torch.zeros(number, 4),
    )


@pytest.mark.parametrize("firing", ["systematic", "independent"])
def test_slots_fire_with_their_chance(firing: str, config: Config, tokenizer: Tokenizer) -> None:
    """(1 - pi) min(1, q max(1, rate)), q = 1 / 4 of the first of four even steps."""
    canvases = [blank_canvas([], tokenizer, config.modality, 0, n) for n in range(3000)]
    for filled, rate, chance in ((0.8, 2.0, 0.4), (0.8, 0.5, 0.2), (0.5, 9.0, 0.5), (0.0, 9.0, 0.0)):
        fires = draw_fires(canvases, says(canvases, filled, rate), sampling(steps=4, firing=firing), KeepSchedule())
        assert np.concatenate(fires).mean() == pytest.approx(chance, abs=4 * (0.25 / 3000) ** 0.5)


def test_closed_slots_and_finished_texts_do_not_fire(config: Config, tokenizer: Tokenizer) -> None:
    closed, done = (blank_canvas([5, 6, ...], tokenizer, config.modality, 0, n) for n in range(2))
    done.text_time = 1.0
    first, second = draw_fires([closed, done], says([closed, done], 1.0, 99.0), sampling(steps=1), KeepSchedule())
    assert first.tolist() == [False, False, True]
    assert not second.any()


def test_a_model_without_insertion_heads_cannot_insert(config: Config, tokenizer: Tokenizer) -> None:
    canvases = [blank_canvas([], tokenizer, config.modality, 0, 0)]
    with pytest.raises(AssertionError, match="insertion heads"):
        draw_fires(canvases, replace(says(canvases, 0.5, 1.0), zero_logit=None), sampling(), KeepSchedule())


def test_the_writer_of_insertion_sees_a_document_as_it_stands(
    config: Config, tokenizer: Tokenizer, make_model: Callable[..., OneFlow]
) -> None:
    writer = writer_of(make_model(config), config, tokenizer)
    assert isinstance(writer, Insertion)
    canvas = blank_canvas([5, ..., 6], tokenizer, config.modality, 0, 0)
    assert writer.snapshot(canvas).tokens.tolist() == canvas.tokens.tolist()
    assert writer.steps_left(canvas) == canvas.steps_left(config.sampling)
    blocks = replace(config, sampling=replace(config.sampling, blocks=2))
    with pytest.raises(ValueError, match=naming("sampling.blocks", 2)):
        writer_of(make_model(blocks), blocks, tokenizer).begin(canvas)
