from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, asdict, fields, replace

import jaxtyping
import numpy as np
import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Losses, NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import pack


def test_the_first_token_must_not_be_a_target(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(ValueError) as error:
        make_sample([1, 2, 3], num_prompt=0)
    assert str(error.value) == (
        "sample 'test/sample': its first token is a target; put a BOS or prompt token before it"
    )


def test_a_sample_without_tokens_is_refused(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(ValueError, match=r"^sample 'test/sample': "):
        make_sample([])


def test_every_image_token_needs_its_image(
    make_sample: Callable[..., Sample], unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    sample = make_sample([1, None, None])
    with unchecked(), pytest.raises(ValueError) as error:
        replace(sample, image_at=np.array([1]))
    assert str(error.value) == "sample 'test/sample': 1 image tokens but 2 images; name each image of the text once"


def test_patches_are_those_of_the_grids(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([1, None, None], grid=[(2, 3), (4, 1)])
    assert len(sample.patches) == 10
    with pytest.raises(AssertionError, match="test/sample: 9 patches for grids of 10"):
        replace(sample, patches=sample.patches[:9])


def test_shapes_and_dtypes_are_checked_in_tests(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([1, 2, 3])
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(sample, is_target=sample.is_target[:2])
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(sample, tokens=sample.tokens.astype(np.float32))


def test_a_sample_cannot_be_changed(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(FrozenInstanceError):
        make_sample([1, 2]).key = "other"  # type: ignore[misc]


def test_counts_add_field_by_field() -> None:
    first = Counts(**{field.name: i for i, field in enumerate(fields(Counts), start=1)})
    second = Counts(**{field.name: 10**i for i, field in enumerate(fields(Counts))})
    expected = {field.name: i + 1 + 10**i for i, field in enumerate(fields(Counts))}
    assert asdict(first + second) == expected
    assert first + Counts.zeros() == first
    assert sum([first, second], Counts.zeros()) == second + first


def test_losses_survive_being_stacked() -> None:
    losses = Losses(**{field.name: torch.tensor(float(i)) for i, field in enumerate(fields(Losses))})
    stacked = losses.stack()
    assert stacked.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert Losses.unstack(stacked) == losses


def test_stacked_losses_hold_no_graph() -> None:
    value = torch.ones((), requires_grad=True) * 2
    assert not Losses(**{field.name: value for field in fields(Losses)}).stack().requires_grad


def test_a_batch_moves_with_every_tensor_and_nothing_else(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    batch = pack([make_noisy(np.random.default_rng(0))], None)
    moved = batch.to(torch.device("meta"))
    for field in fields(PackedBatch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert after.device.type == "meta", field.name
            assert after.shape == before.shape, field.name
        else:
            assert after == before, field.name
