from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Sample
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from oneflow_dist.trained import load_model
from tools.experiments.probes.exact import by_letter, law_of
from tools.experiments.token_counts import frequency
from tools.experiments.token_schedule import (
    TokenNoising,
    draw_kept,
    draw_of_logits,
    insertion_probs,
    probs_of_logits,
    rank_of,
    replacements_by,
    reweigh,
)
from tools.experiments.toys import VAR, canvas_of, distance, mean_length, predict, settings_of

TEXTS = [(1.0, [(5, 0), (6, 5), (6, 6)]), (1.0, [(5, 0)])]  # 5 6 6, and 5, each after 0


def test_ranks_go_from_0_to_1_and_equal_values_share_theirs() -> None:
    np.testing.assert_array_equal(rank_of(np.array([0.0, 0.3, 0.0, 0.9])), [0.0, 0.5, 0.0, 1.0])
    np.testing.assert_array_equal(rank_of(np.array([2.0, 2.0])), [0.5, 0.5])
    assert rank_of(np.array([-np.inf, -3.0])).tolist() == [0.0, 1.0]


class OfTokens(TokenNoising):
    def exponents(self) -> np.ndarray:
        return np.array([1.0, 0.5, 2.0, 1.0])


def test_tokens_are_there_with_their_own_probabilities(make_sample: Callable[..., Sample]) -> None:
    sample, rng = make_sample([0, 1, 2, 3, 1]), np.random.default_rng(0)
    noising = OfTokens(schedule=KeepSchedule(), laws=())
    kept = np.mean([draw_kept(sample, 0.25, [np.zeros(0)], noising, rng) for _ in range(4000)], axis=0)
    assert kept == pytest.approx([1.0, 0.5, 0.0625, 0.25, 0.5], abs=0.03)


def test_chances_to_appear_chain_over_steps_and_are_1_at_the_end() -> None:
    exponents = np.array([0.5, 1.0, 2.0])
    whole = insertion_probs(exponents, 0.2, 0.6)
    parts = [insertion_probs(exponents, 0.2, 0.25), insertion_probs(exponents, 0.45, 0.35)]
    np.testing.assert_allclose(1.0 - whole, (1.0 - parts[0]) * (1.0 - parts[1]))
    np.testing.assert_allclose(insertion_probs(exponents, 0.0, 0.25), [0.5, 0.25, 0.0625])
    assert (insertion_probs(exponents, 0.9, 0.2) == 1.0).all()


def test_a_slot_fires_as_often_as_its_tokens_appear_and_gets_them_in_proportion() -> None:
    """Half of what is missing, 1.5 tokens where any are, is an a that appears with 1/2, half a b with 1/16."""
    own, none = settings_of(4, time_power=1.0), np.zeros(0, dtype=np.int64)
    said = predict([(0.6, 0.6, {"a": 0.5, "b": 0.5})])
    told = reweigh([canvas_of("", 0.0)], said, own, KeepSchedule(), np.array([0.5, 2.0]), none)
    assert told.zero_logit is not None
    assert told.log_rate is not None
    mean = 0.5 * (0.5 + 0.0625)
    chance = torch.sigmoid(-told.zero_logit) * (0.25 * told.log_rate.exp()).clamp(max=1.0)
    assert chance.item() == pytest.approx(0.4 * 1.5 * mean, rel=1e-5)
    assert told.slot_hidden.softmax(-1)[0].tolist() == pytest.approx([0.25 / mean, 0.03125 / mean], rel=1e-5)


def test_pieces_appear_by_the_schedule_of_the_config() -> None:
    own = settings_of(4, time_power=1.0)
    said = predict([(0.0, 1.0, {"a": 0.5, "b": 0.5})])
    told = reweigh([canvas_of("", 0.0)], said, own, KeepSchedule(), np.array([2.0, 2.0]), np.array([1]))
    probs = told.slot_hidden.softmax(-1)[0]
    assert (probs[1] / probs[0]).item() == pytest.approx(0.25 / 0.0625)


def test_with_one_schedule_for_all_nothing_changes() -> None:
    own, none = settings_of(8), np.zeros(0, dtype=np.int64)
    said = predict([(0.3, 0.9, {"a": 0.7, "b": 0.3}), (0.9, 0.2, {"a": 1.0}), (1.0, 0.0, {})])
    told = reweigh([canvas_of("ab", 0.3)], said, own, KeepSchedule(), np.ones(2), none)
    assert said.zero_logit is not None
    assert told.zero_logit is not None
    torch.testing.assert_close(told.zero_logit, said.zero_logit, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(told.slot_hidden.softmax(-1).float(), said.slot_hidden.softmax(-1))


@pytest.mark.parametrize("exponents", [{"a": 0.5, "b": 2.0}, {"a": 2.0, "b": 0.5}])
def test_with_exact_heads_texts_come_to_the_data_whatever_the_schedules(
    exponents: dict[str, float], unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    with unchecked():
        laws = [law_of(VAR, by_letter(**exponents), steps) for steps in (4, 16, 64)]
    distances = [distance(law, VAR) for law in laws]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.015
    assert mean_length(laws[-1]) == pytest.approx(2.20, abs=0.02)


def test_tokens_are_drawn_from_logits_with_temperature_and_top_k(
    make_model: Callable[..., OneFlow], config: Config
) -> None:
    model = make_model(config)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)).expand(2000, -1)
    generators = [np.random.default_rng(seed) for seed in range(2000)]
    own = settings_of(4)
    drawn = draw_of_logits(model, logits, generators, own, 3)
    assert np.bincount(drawn) / 2000 == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    best = draw_of_logits(model, logits, generators, dataclasses.replace(own, top_k=1), 3)
    assert set(best.tolist()) == {0}
    assert probs_of_logits(model, logits[:2], np.array([0, 2])) == pytest.approx([0.5, 0.2])
    assert len(draw_of_logits(model, logits[:0], [], own, 3)) == 0


def test_a_model_writes_with_schedules_of_its_tokens_and_refuses_corrections(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, config = load_model(runs / "timeless")
    for place, part in replacements_by(frequency, is_late=True).items():
        monkeypatch.setattr(place.replace(":", "."), part)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    canvases = [blank_canvas([], tokenizer, config.modality, 0, index) for index in range(3)]
    for canvas in generate(model, canvases, config, tokenizer):
        assert canvas.text_time == 1.0
        assert (canvas.tokens < tokenizer.vocab_size).all()
    own = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, corrections=1))
    with pytest.raises(ValueError, match=r"sampling.corrections: is 1, .* set it to 0"):
        generate(model, [blank_canvas([], tokenizer, config.modality, 0, 9)], own, tokenizer)
