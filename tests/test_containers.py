from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, fields, replace

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, Counts, Losses, NoisySample, PackedBatch, PackedPieces, Pieces, Sample
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
    (images,) = make_sample([1, None, None]).pieces
    with unchecked(), pytest.raises(AssertionError, match=r"2 .* 1 "):
        replace(images, token=np.array([1]))


def test_patches_are_those_of_the_grids(make_sample: Callable[..., Sample]) -> None:
    (images,) = make_sample([1, None, None], grid=[(2, 3), (4, 1)]).pieces
    assert len(images.patches) == 10
    with pytest.raises(AssertionError, match=r"9 .* 10"):
        replace(images, patches=images.patches[:9])


def test_bags_of_known_tokens_have_their_counts_and_are_filled_for_sure_or_not_at_all() -> None:
    bags = Bags.of_tokens(np.array([7, 8, 7]), np.array([1, 1, 3]), 5)
    assert (bags.tokens.tolist(), bags.slot.tolist(), bags.weight.tolist()) == ([7, 8, 7], [1, 1, 3], [1.0] * 3)
    assert bags.missing_count.tolist() == [0.0, 2.0, 0.0, 1.0, 0.0]
    assert bags.filled_prob.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


sides = st.integers(1, 3)


@given(st.lists(st.tuples(sides, sides, sides), min_size=1, max_size=6), st.data())
def test_pieces_that_are_taken_bring_their_patches_along(grid: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Each shows its number, in a time that is its number too; any of them, in any order, also twice."""
    number = np.arange(len(grid))
    size = np.array(grid).prod(axis=1)
    pieces = Pieces(
        token=2 * number,
        time=number.astype(np.float64),
        grid=np.array(grid),
        stride=1.0 / (1 + number),
        patches=np.repeat(number, size)[:, None].astype(np.float32),
    )
    np.testing.assert_array_equal(pieces.per_patch(number), pieces.patches[:, 0])
    order = np.array(data.draw(st.lists(st.integers(0, len(grid) - 1), max_size=8)), dtype=np.int64)
    taken = pieces.take(order)
    np.testing.assert_array_equal(taken.token, 2 * order)
    np.testing.assert_array_equal(taken.time, order)
    np.testing.assert_array_equal(taken.grid, pieces.grid[order])
    np.testing.assert_array_equal(taken.stride, 1.0 / (1 + order))
    np.testing.assert_array_equal(taken.patches[:, 0], np.repeat(order, size[order]))
    is_kept = np.isin(number, order)
    np.testing.assert_array_equal(pieces.select(is_kept).time, np.flatnonzero(is_kept))


def test_shapes_and_dtypes_are_checked_in_tests(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([1, 2, 3])
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(sample, is_target=sample.is_target[:2])
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(sample, tokens=sample.tokens.astype(np.float32))


def test_a_sample_cannot_be_changed(make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(FrozenInstanceError):
        make_sample([1, 2]).key = "other"  # type: ignore[misc]


OF_MODALITIES = ("patches", "moving_elements")


def counts(factor: int, num_modalities: int) -> Counts:
    """A power of two for each field and each modality, times a factor."""
    values = [factor * 2**i for i in range(len(fields(Counts)) + 2 * num_modalities)]
    names = [field.name for field in fields(Counts) if field.name not in OF_MODALITIES]
    tuples = {
        name: tuple(values[len(names) + i * num_modalities :][:num_modalities]) for i, name in enumerate(OF_MODALITIES)
    }
    return Counts(**dict(zip(names, values, strict=False)), **tuples)


@pytest.mark.parametrize("num_modalities", [0, 1, 3])
def test_counts_add_field_by_field_and_modality_by_modality(num_modalities: int) -> None:
    first, second = counts(1, num_modalities), counts(10, num_modalities)
    assert first + second == counts(11, num_modalities)
    assert first + Counts.zeros() == Counts.zeros() + first == first + Counts.zeros(num_modalities) == first
    assert sum([first, second], Counts.zeros()) == second + first
    assert all(value == 0 for value in Counts.zeros(num_modalities).to_list())


@pytest.mark.parametrize("num_modalities", [0, 1, 3])
def test_counts_survive_being_a_list(num_modalities: int) -> None:
    first = counts(1, num_modalities)
    assert len(set(first.to_list())) == len(fields(Counts)) - 2 + 2 * num_modalities
    assert Counts.from_list(first.to_list()) == first


def losses(num_modalities: int, value: torch.Tensor | None = None) -> Losses:
    """Another number in each."""
    zero, rate, bag, total, *velocity = torch.arange(4.0 + num_modalities) if value is None else value
    return Losses(zero=zero, rate=rate, bag=bag, total=total, velocity=torch.tensor(velocity))


@pytest.mark.parametrize("num_modalities", [0, 1, 3])
def test_losses_survive_being_stacked(num_modalities: int) -> None:
    own = losses(num_modalities)
    assert len(set(own.stack().tolist())) == len(own.stack()) == 4 + num_modalities
    again = Losses.unstack(own.stack())
    assert all(torch.equal(getattr(again, field.name), getattr(own, field.name)) for field in fields(Losses))
    assert own.stack()[-1] == own.total


def test_losses_are_named_after_the_modalities_in_the_order_in_which_they_are_stacked() -> None:
    named = losses(2).named(["image", "sound"])
    assert list(named) == ["zero", "rate", "bag", "velocity_image", "velocity_sound", "total"]
    assert list(named.values()) == losses(2).stack().tolist()


def test_stacked_losses_hold_no_graph() -> None:
    value = torch.ones(1, requires_grad=True) * 2
    scalars = dict.fromkeys(("zero", "rate", "bag", "total"), value[0])
    assert not Losses(**scalars, velocity=value).stack().requires_grad


def test_a_batch_moves_with_every_tensor_and_nothing_else(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    batch = pack([make_noisy(np.random.default_rng(0))], None)
    moved = batch.to(torch.device("meta"))
    kinds = zip(batch.pieces, moved.pieces, strict=True)
    of_pieces = [(before, after, field.name) for before, after in kinds for field in fields(PackedPieces)]
    for before, after, name in [*of_pieces, *((batch, moved, field.name) for field in fields(PackedBatch))]:
        value, other = getattr(before, name), getattr(after, name)
        if isinstance(value, torch.Tensor):
            assert other.device.type == "meta", name
            assert other.shape == value.shape, name
        elif name != "pieces":
            assert other == value, name
    tensors = [value for one in (batch, *batch.pieces) for value in map(one.__getattribute__, one.__slots__)]
    expected = sorted(id(value) for value in tensors if isinstance(value, torch.Tensor))
    assert sorted(map(id, batch.tensors())) == expected
