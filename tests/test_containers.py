from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, asdict, fields, replace

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Images, Losses, NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import pack


def test_the_first_token_must_not_be_a_target(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(ValueError) as error:
        make_sample([1, 2, 3], num_prompt=0)
    assert "test/sample" in str(error.value)


def test_a_sample_without_tokens_is_refused(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(ValueError, match=r"'test/sample'"):
        make_sample([])


def test_every_image_token_needs_its_image(
    make_sample: Callable[..., Sample], unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    images = make_sample([1, None, None]).images
    with unchecked(), pytest.raises(AssertionError, match=r"2 .* 1 "):
        replace(images, token=np.array([1]))


def test_patches_are_those_of_the_grids(make_sample: Callable[..., Sample]) -> None:
    images = make_sample([1, None, None], grid=[(2, 3), (4, 1)]).images
    assert len(images.patches) == 10
    with pytest.raises(AssertionError, match=r"9 .* 10"):
        replace(images, patches=images.patches[:9])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6), st.data())
def test_images_that_are_taken_bring_their_patches_along(grid: list[tuple[int, int]], data: st.DataObject) -> None:
    """Each shows its number, in a time that is its number too; any of them, in any order, also twice."""
    number = np.arange(len(grid))
    size = np.array(grid).prod(axis=1)
    images = Images(
        token=2 * number,
        time=number.astype(np.float64),
        grid=np.array(grid),
        patches=np.repeat(number, size)[:, None].astype(np.float32),
    )
    np.testing.assert_array_equal(images.per_patch(number), images.patches[:, 0])
    order = np.array(data.draw(st.lists(st.integers(0, len(grid) - 1), max_size=8)), dtype=np.int64)
    taken = images.take(order)
    np.testing.assert_array_equal(taken.token, 2 * order)
    np.testing.assert_array_equal(taken.time, order)
    np.testing.assert_array_equal(taken.grid, images.grid[order])
    np.testing.assert_array_equal(taken.patches[:, 0], np.repeat(order, size[order]))
    is_kept = np.isin(number, order)
    np.testing.assert_array_equal(images.select(is_kept).time, np.flatnonzero(is_kept))


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
    losses = Losses(**{name: torch.tensor(float(i)) for i, name in enumerate(Losses.names())})
    assert len(set(losses.stack().tolist())) == len(Losses.names())
    assert Losses.unstack(losses.stack()) == losses


def test_stacked_losses_hold_no_graph() -> None:
    value = torch.ones((), requires_grad=True) * 2
    assert not Losses(**dict.fromkeys(Losses.names(), value)).stack().requires_grad


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
