from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from oneflow_dist.containers import NoisySample
from oneflow_dist.data.packing import pack
from oneflow_dist.transfers import Moment, ToHost, Uploads

CPU = torch.device("cpu")


def test_what_the_host_gets_is_what_was_there_when_it_was_asked_for() -> None:
    x = torch.tensor([1.5, float("nan"), 3.0], dtype=torch.float64)
    sent = ToHost(x)
    x.zero_()
    assert sent.wait()[[0, 2]].tolist() == [1.5, 3.0]
    assert sent.wait().isnan().tolist() == [False, True, False]


def test_moments_are_as_far_apart_as_the_host_says() -> None:
    first, second = Moment(CPU), Moment(CPU)
    assert second.seconds_since(first) >= 0.0
    assert first.seconds_since(second) == -second.seconds_since(first)


def test_an_uploaded_batch_is_the_batch(make_noisy: Callable[..., NoisySample]) -> None:
    batch = pack([make_noisy(np.random.default_rng(0), num_images=2)], None)
    there = Uploads(CPU).upload(batch)
    assert (there.keys, there.counts, there.num_filled) == (batch.keys, batch.counts, batch.num_filled)
    assert len(there.tensors()) == len(batch.tensors()) == 13 + 8  # of the pack, and of its one modality
    assert all(torch.equal(*pair) for pair in zip(there.tensors(), batch.tensors(), strict=True))
