from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.baselines.masked import Masked
from oneflow_dist.containers import NoisySample, Sample
from oneflow_dist.flow.noising import Noising, is_deletable
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw

EOS, MARK, IMAGE = 257, 999, 258
FIX = {"aab": 0.3, "abb": 0.2, "bab": 0.25, "bba": 0.25}


def process(canvas_tokens: int = 0, kind: str = "linear", **dropout: float) -> Masked:
    noising = Noising(schedule=KeepSchedule(kind=kind), laws=(TimeLaw(),), **dropout)  # type: ignore[arg-type]
    return Masked(noising=noising, canvas_tokens=canvas_tokens, eos=EOS, mark=MARK)


def noised(sample: Sample, own: Masked, seed: int = 0) -> NoisySample:
    return own.noise(own.prepare(sample), np.random.default_rng(seed))


def test_what_is_hidden_is_the_bag_of_its_own_place(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, 2, 3, 4, 5, 6], num_prompt=2, is_interleaved=False)
    for seed in range(20):
        noisy = noised(sample, process(), seed)
        hidden = np.flatnonzero(noisy.tokens == MARK)
        assert noisy.bags.slot.tolist() == hidden.tolist()
        assert noisy.bags.tokens.tolist() == sample.tokens[hidden].tolist()
        assert noisy.tokens[:2].tolist() == [256, 1]
        assert noisy.is_open.tolist() == [False, False, *[True] * 5]
        assert noisy.bags.weight == pytest.approx(np.full(len(hidden), 1.0 / (1.0 - noisy.text_time)), rel=1e-6)


def test_eos_fills_every_stretch_of_text_to_its_canvas(make_sample: Callable[..., Sample]) -> None:
    whole = process(4).prepare(make_sample([256, 1, 2, None, 3, 4, 5, 6, 7], num_prompt=2, is_interleaved=False))
    assert whole.tokens.tolist() == [256, 1, 2, EOS, EOS, EOS, IMAGE, 3, 4, 5, 6, 7, EOS, EOS, EOS]
    assert whole.pieces[0].token.tolist() == [6]
    assert is_deletable(whole).sum() == 12
    interleaved = process(4).prepare(make_sample([256, 1, None, 2]))
    assert interleaved.tokens.tolist() == [256, 1, IMAGE, 2, EOS]
    none = make_sample([256, 1, None], num_prompt=2, is_interleaved=False)
    assert process(4).prepare(none).tokens.tolist() == none.tokens.tolist()


def test_pieces_come_and_go_with_their_tokens(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, None, 2, None])
    absent = moving = 0
    for seed in range(2000):
        noisy = noised(sample, process(), seed)
        is_there = noisy.tokens[[2, 4]] == IMAGE
        assert noisy.pieces[0].pieces.token.tolist() == (np.array([2, 4])[is_there]).tolist()
        absent += int((~is_there).sum())
        moving += int(noisy.pieces[0].is_moving.sum())
    assert absent / 4000 == pytest.approx(0.25, abs=0.02)  # as in OneFlow: a quarter is not there, half of all move
    assert moving / 4000 == pytest.approx(0.5, abs=0.02)


def test_a_finished_text_is_not_counted(make_sample: Callable[..., Sample]) -> None:
    done = [noised(make_sample([256, 1, None, 2]), process(), seed) for seed in range(40)]
    assert {bool(noisy.is_open.any()) for noisy in done if noisy.text_time == 1.0} == {False}
    assert {bool(noisy.is_open.any()) for noisy in done if noisy.text_time < 1.0} == {True}


def exact_nll(visible: str, place: int, letter: str) -> float:
    """-log P(letter at a place | what is visible), "?" what is hidden, under FIX."""
    fits = {x: p for x, p in FIX.items() if all(v in ("?", c) for v, c in zip(visible, x, strict=True))}
    return -math.log(sum(p for x, p in fits.items() if x[place] == letter) / sum(fits.values()))


def bound(text: str) -> float:
    """The mean loss of a text by enumeration: m hidden tokens of L weigh the integral of t^(L - m) (1 - t)^(m - 1).

    With exact posteriors every order of the tokens has the chain rule's sum, so it is -log p(text) where these are the
    conditionals of one law, in every single text.
    """
    total, length = 0.0, len(text)
    for m in range(1, length + 1):
        weight = math.factorial(m - 1) * math.factorial(length - m) / math.factorial(length)
        for hidden in itertools.combinations(range(length), m):
            visible = "".join("?" if place in hidden else letter for place, letter in enumerate(text))
            total += weight * sum(exact_nll(visible, place, text[place]) for place in hidden)
    return total


def test_with_exact_posteriors_the_mean_loss_is_the_likelihood() -> None:
    assert {text: bound(text) for text in FIX} == pytest.approx({text: -math.log(p) for text, p in FIX.items()})


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_loss_of_noised_samples_is_the_enumerated_one(make_sample: Callable[..., Sample], kind: str) -> None:
    """Whatever the schedule: its hazard weighs."""
    text, own = "abb", process(kind=kind)
    sample = own.prepare(make_sample([256, *map(ord, text)], is_interleaved=False))
    losses = []
    rng, number = np.random.default_rng(0), 6000
    for n in range(number):
        noisy = own.look_at(sample, rng, (n / number, (n + 1) / number))
        visible = "".join("?" if token == MARK else chr(token) for token in noisy.tokens[1:])
        nll = [
            exact_nll(visible, slot - 1, chr(token))
            for slot, token in zip(noisy.bags.slot, noisy.bags.tokens, strict=True)
        ]
        losses.append(float(np.dot(noisy.bags.weight, nll)))
    error = np.std(losses) / math.sqrt(len(losses))
    assert error < 0.05
    assert np.mean(losses) == pytest.approx(bound(text), abs=4 * error)


def test_samples_lose_their_condition_as_in_oneflow(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, 2, 3], num_prompt=3, is_interleaved=False)
    untold = noised(sample, process(prompt_dropout_prob=1.0))
    assert untold.tokens[:2].tolist() == [256, 256]
    assert len(untold.tokens) == 3
    images = make_sample([256, 1, None], num_prompt=1, is_interleaved=False)
    alone = noised(images, process(condition_dropout_prob=1.0))
    assert alone.tokens.tolist() == [256, IMAGE]
    assert not alone.is_open.any()
