from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from oneflow_dist.model.philox import normal_values

ROWS, COLUMNS = 61, 45


def whole(seed: int = 3, name: str = "embed.weight") -> Tensor:
    return normal_values(seed, name, torch.arange(ROWS), torch.arange(COLUMNS))


@pytest.fixture(scope="module")
def million() -> Tensor:
    return normal_values(0, "a", torch.arange(1000), torch.arange(1000))


@given(
    st.lists(st.integers(0, ROWS - 1), max_size=8),
    st.lists(st.integers(0, COLUMNS - 1), max_size=12, unique=True).map(sorted),
)
def test_any_rows_and_columns_are_those_of_the_whole(rows: list[int], columns: list[int]) -> None:
    own = [torch.tensor(places, dtype=torch.int64) for places in (rows, columns)]
    part = normal_values(3, "embed.weight", *own)
    assert torch.equal(part, whole()[own[0]][:, own[1]])


def test_what_is_drawn_in_many_chunks_is_what_is_drawn_at_once() -> None:
    rows, columns = torch.arange(300), torch.arange(8 * 1000)
    values = normal_values(0, "a", rows, columns)
    for row in (0, 15, 16, 17, 299):  # 16 rows to a chunk
        assert torch.equal(values[row : row + 1], normal_values(0, "a", rows[row : row + 1], columns))


def test_values_depend_on_seed_and_name() -> None:
    assert torch.equal(whole(), whole())
    assert (whole() == whole(seed=4)).float().mean() < 1e-3
    assert (whole() == whole(name="unembed.weight")).float().mean() < 1e-3


def test_values_are_standard_normal(million: Tensor) -> None:
    """Mean, variance and shape, each within what a million draws allow."""
    values = million.flatten().double()
    assert abs(values.mean()) < 4e-3
    assert abs(values.var() - 1.0) < 6e-3
    assert abs(stats.skew(values.numpy())) < 0.01
    assert abs(stats.kurtosis(values.numpy())) < 0.02
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    assert 4.0 < values.abs().max() < 4.33


def test_neighbours_rows_and_columns_are_independent(million: Tensor) -> None:
    """Correlations of a million pairs: a standard deviation of 0.001."""
    for shift in (1, 2, 4, 8, 9):
        for dim in (0, 1):
            other = million.roll(shift, dims=dim)
            assert abs((million * other).mean()) < 5e-3
            assert abs((million.square() * other.square()).mean() - 1.0) < 0.02
    assert million.mean(dim=0).std() == pytest.approx(1000**-0.5, rel=0.1)
    assert million.mean(dim=1).std() == pytest.approx(1000**-0.5, rel=0.1)
