from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oneflow_dist.containers import Sample
from oneflow_dist.flow.noising import Noising, noise_sample
from oneflow_dist.flow.process import Insertion, Process
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw

NOISING = Noising(schedule=KeepSchedule(), laws=(TimeLaw(),), condition_dropout_prob=0.2, prompt_dropout_prob=0.2)


def test_insertion_noises_samples_as_they_are(make_sample: Callable[..., Sample]) -> None:
    own: Process = Insertion(noising=NOISING)
    sample = make_sample([256, 1, None, 2, 3])
    assert own.prepare(sample) is sample
    for seed in range(20):
        one, other = (
            own.noise(sample, np.random.default_rng(seed)),
            noise_sample(sample, NOISING, np.random.default_rng(seed)),
        )
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.bags.tokens.tolist() == other.bags.tokens.tolist()


def test_what_is_looked_at_keeps_its_condition_and_falls_into_its_span(make_sample: Callable[..., Sample]) -> None:
    own = Insertion(noising=NOISING)
    sample = make_sample([256, 1, 2, None], num_prompt=2, is_interleaved=False)
    for seed in range(40):
        noisy = own.look_at(sample, np.random.default_rng(seed), (0.25, 0.5), (0.5, 0.75))
        assert noisy.tokens[:2].tolist() == [256, 1]
        assert 0.25 <= noisy.text_time < 0.5
        assert 0.5 <= noisy.pieces[0].pieces.time[0] < 0.75
