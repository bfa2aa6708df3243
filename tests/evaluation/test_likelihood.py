from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, NoisySample, PackedBatch, Sample
from oneflow_dist.data.codec import cut_pieces
from oneflow_dist.data.packing import pack
from oneflow_dist.evaluation import likelihood
from oneflow_dist.evaluation.likelihood import bound_text, look_at, sum_bound
from oneflow_dist.flow.process import Process
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.process import process_of
from tools.experiments.toys import at_time, exact_heads

# No letter twice, so that a text tells where its letters stood: then the bound of exact heads is the entropy.
DATA = {"": 0.1, "a": 0.2, "ab": 0.15, "cab": 0.25, "dcb": 0.2, "bacd": 0.1}
BOS, EOS = 9, 1
PLAIN = "heads.time_conditioning=none"
KINDS = {
    "insertion": (),
    "autoregressive": ("objective.kind=autoregressive", PLAIN),
    "masked": ("objective.kind=masked", PLAIN, "objective.canvas_tokens=6"),
}


class Exact(OneFlow):
    """The posterior of DATA, of samples at the times that they say, with the linear schedule."""

    def __init__(self, flatter: float = 1.0):
        torch.nn.Module.__init__(self)
        self.place = torch.nn.Parameter(torch.zeros(()))
        self.flatter = flatter

    def forward(self, batch: PackedBatch, caches: Sequence[object] = ()) -> Any:
        heads = []
        for number, keep_prob in enumerate(batch.text_time.tolist()):
            tokens = batch.tokens[batch.token_sequence == number].tolist()
            if tokens:  # else it is the padding
                text = "".join("abcd"[token] for token in tokens[1:])
                heads += exact_heads(text, tuple(DATA.items()), at_time, keep_prob)
        pi, expected = (torch.tensor([head[n] for head in heads], dtype=torch.float64) for n in (0, 1))
        bags = zip(batch.bag_tokens.tolist(), batch.bag_slot.tolist(), batch.bag_weight.tolist(), strict=True)
        nll = sum(weight * -math.log(heads[slot][2]["abcd"[token]]) for token, slot, weight in bags)
        return SimpleNamespace(
            zero_logit=pi.logit().clamp(-60, 60),
            log_rate=(self.flatter * expected / (1.0 - pi).clamp(min=1e-30)).clamp(min=1e-30).log(),
            bag_loss=torch.tensor(nll),
        )


class Twice(Exact):
    """Two tokens are expected in every slot, and Q gives all of it to the one that is asked for."""

    def forward(self, batch: PackedBatch, caches: Sequence[object] = ()) -> Any:
        log_rate = torch.full((len(batch.tokens),), math.log(2.0))
        return SimpleNamespace(zero_logit=log_rate - 60.0, log_rate=log_rate, bag_loss=torch.zeros(()))


def noisy(text: str, kept: tuple[int, ...], text_time: float = 0.5) -> NoisySample:
    """A text with some letters kept; every slot is open."""
    slot = [sum(place < n for place in kept) for n in range(len(text)) if n not in kept]
    missing = ["abcd".index(text[n]) for n in range(len(text)) if n not in kept]
    tokens = np.array([BOS, *("abcd".index(text[place]) for place in kept)])
    return NoisySample(
        key="s",
        tokens=tokens,
        is_given=np.arange(len(tokens)) == 0,
        is_open=np.ones(len(tokens), dtype=bool),
        bags=Bags.of_tokens(np.array(missing, dtype=np.int64), np.array(slot, dtype=np.int64), len(tokens)),
        pieces=(),
        text_time=text_time,
    )


def mean_bound(flatter: float, steps: int = 200) -> float:
    """Over all texts, times and what may be kept."""
    total, model = 0.0, Exact(flatter)
    for step in range(steps):
        keep_prob = (step + 0.5) / steps
        looks, weights = [], []
        for text, prob in DATA.items():
            for count in range(len(text) + 1):
                chance = keep_prob**count * (1.0 - keep_prob) ** (len(text) - count)
                for kept in itertools.combinations(range(len(text)), count):
                    looks.append(noisy(text, kept, keep_prob))
                    weights.append(prob * chance / (1.0 - keep_prob) / steps)
        total += sum_bound(model, pack(looks, None), np.array(weights))
    return total


def answer_of(config: Config, tokens: list[int]) -> tuple[Sample, Process]:
    """A sample of text, two tokens of it prompt, as the objective prepares it."""
    sample = Sample(
        key="s",
        tokens=np.array(tokens),
        is_target=np.arange(len(tokens)) >= 2,
        pieces=tuple(cut_pieces([], [], modality) for modality in config.modality.values()),
        is_interleaved=False,
    )
    process = process_of(config, EOS, config.model.vocab_size - 1)
    return process.prepare(sample), process


def generators(number: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, instant]) for instant in range(number)]


def test_exact_heads_need_the_entropy_of_the_data_and_others_more() -> None:
    entropy = -sum(prob * math.log(prob) for prob in DATA.values())
    assert mean_bound(1.0) == pytest.approx(entropy, abs=2e-3)
    assert mean_bound(1.3) > entropy + 0.02
    assert mean_bound(0.7) > entropy + 0.02


def test_tokens_of_one_slot_that_are_equal_are_one_event_of_twice_the_rate() -> None:
    """Expected are k of a token that Q gives all, and k are missing: nothing is lost."""
    sample = noisy("aa", ())
    assert sum_bound(Twice(), pack([sample], None), np.array([3.0])) == pytest.approx(0.0, abs=1e-5)


def test_each_sample_of_a_pack_counts_by_its_own_number() -> None:
    model, looks, hazards = Exact(1.3), [noisy("cab", (0,), 0.3), noisy("ab", (), 0.6)], np.array([2.0, 7.0])
    alone = [sum_bound(model, pack([look], None), np.ones(1)) for look in looks]
    assert sum_bound(model, pack(looks, None), hazards) == pytest.approx(hazards @ np.array(alone), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_many_packs_say_what_one_says(
    kind: str, make_config: Callable[..., Config], make_model: Callable[..., OneFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*KINDS[kind])
    model, (sample, process) = make_model(config).eval(), answer_of(config, [7, 8, 10, 11, 12])
    one = bound_text(model, config, process, sample, generators(5))
    assert one > 0.0
    monkeypatch.setattr(likelihood, "PACK_ROWS", 2 * sample.num_rows)
    assert bound_text(model, config, process, sample, generators(5)) == pytest.approx(one, rel=1e-4)


def test_next_tokens_need_one_look_which_is_their_likelihood(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow]
) -> None:
    config = make_config(*KINDS["autoregressive"])
    model, (sample, process) = make_model(config).eval(), answer_of(config, [7, 8, 10, 11])
    (look,), _ = look_at([sample], 0, 1, config, process, np.random.default_rng(0))
    with torch.no_grad():
        said = model(pack([look], None, sees=config.sees))
        log_probs = model.bag_logits(said.slot_hidden[1:4]).log_softmax(dim=1)
    expected = -log_probs[[0, 1, 2], [10, 11, EOS]].sum()  # the answer, then <|eos|>
    for number in (1, 8):
        assert bound_text(model, config, process, sample, generators(number)) == pytest.approx(
            float(expected), rel=1e-4
        )


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_who_knows_nothing_needs_the_logarithm_of_the_vocabulary_for_each_token(
    kind: str, make_config: Callable[..., Config], make_model: Callable[..., OneFlow]
) -> None:
    config = make_config(*KINDS[kind])
    model, (sample, process) = make_model(config).eval(), answer_of(config, [7, 8, 10, 11, 12])
    for parameter in model.parameters():
        parameter.data.zero_()
    number = {"autoregressive": 4, "masked": 6}[kind]  # with <|eos|>; a canvas of six
    found = bound_text(model, config, process, sample, generators(400))
    assert found == pytest.approx(number * math.log(config.model.vocab_size), rel=1e-5 if kind != "masked" else 0.1)


def test_instants_of_insertion_lie_in_equal_parts_of_the_chance_to_be_kept(config: Config) -> None:
    sample, process = answer_of(config, [7, 8, 10, 11])
    hazards = [look_at([sample], n, 4, config, process, np.random.default_rng(n))[1] for n in range(4)]
    kept = [1.0 - 1.0 / hazard for hazard in hazards]
    assert [int(4 * prob) for prob in kept] == [0, 1, 2, 3]
