from __future__ import annotations

import math

import pytest
import torch

from oneflow_dist.model.embeddings import (
    LEAST_TIME_LEFT,
    Modulation,
    TimeEmbedding,
    log_time_left,
    place_rows,
    spread,
    take_rows,
    time_sinusoids,
)


def test_sinusoids_at_time_zero_are_one_and_zero() -> None:
    assert time_sinusoids(torch.zeros(1), 4).tolist() == [[1.0] * 4 + [0.0] * 4]


def test_sinusoids_turn_with_frequencies_from_1_to_1000() -> None:
    time = torch.tensor([0.25, 0.8])
    cosines, sines = time_sinusoids(time, 4).chunk(2, dim=-1)
    for i, frequency in enumerate((1.0, 10.0, 100.0, 1000.0)):
        torch.testing.assert_close(cosines[:, i], torch.cos(frequency * time), atol=1e-3, rtol=0.0)
        torch.testing.assert_close(sines[:, i], torch.sin(frequency * time), atol=1e-3, rtol=0.0)


def test_times_that_differ_by_a_thousandth_are_told_apart() -> None:
    first, second = time_sinusoids(torch.tensor([0.5, 0.501]), 128)
    assert (first - second).abs().max() > 0.5


def test_time_embedding_tells_times_apart() -> None:
    torch.manual_seed(0)
    embedding = TimeEmbedding(16)(torch.tensor([0.0, 0.5, 0.5, 1.0]))
    assert embedding.shape == (4, 16)
    torch.testing.assert_close(embedding[1], embedding[2])
    assert not torch.isclose(embedding[0], embedding[1]).any()
    assert not torch.isclose(embedding[1], embedding[3]).any()


def test_the_embedding_of_a_text_tells_apart_how_little_time_is_left() -> None:
    """1e-4 and 2e-4 of it, which are nearly one to other embeddings; below LEAST_TIME_LEFT all is nearly the same."""
    late = 1.0 - torch.tensor([1e-4, 2e-4, LEAST_TIME_LEFT / 2, 0.0])
    torch.manual_seed(0)
    plain, of_text = (TimeEmbedding(16, is_of_text)(late) for is_of_text in (False, True))
    assert (plain[0] - plain[1]).norm() < 0.1 * (of_text[0] - of_text[1]).norm()
    assert (of_text[2] - of_text[3]).norm() < 1e-3


def test_the_logarithm_of_the_time_left_is_finite() -> None:
    found = log_time_left(torch.tensor([0.0, 0.5, 0.75, 1.0]))
    expected = [0.0, math.log(0.5), math.log(0.25), math.log(LEAST_TIME_LEFT)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("is_of_text", [False, True])
def test_time_embedding_computes_in_the_dtype_of_its_weights(is_of_text: bool) -> None:
    assert TimeEmbedding(16, is_of_text).bfloat16()(torch.tensor([0.3])).dtype == torch.bfloat16


@pytest.mark.parametrize("num_parts", [2, 6])
def test_modulation_is_neutral_where_its_weights_are_zero(num_parts: int) -> None:
    modulation = Modulation(8, num_parts)
    for parameter in modulation.parameters():
        torch.nn.init.zeros_(parameter)
    parts = modulation(torch.randn(3, 8))
    assert [part.unique().tolist() for part in parts] == ([[0.0], [1.0], [0.0]] * 2)[:num_parts]


def test_modulation_is_a_linear_map_of_the_activated_condition() -> None:
    torch.manual_seed(0)
    modulation, condition = Modulation(4, 2), torch.randn(3, 4)
    raw = modulation.linear(condition / (1.0 + torch.exp(-condition)))
    shift, scale = modulation(condition)
    torch.testing.assert_close(shift, raw[:, :4])
    torch.testing.assert_close(scale, 1.0 + raw[:, 4:])


@pytest.mark.parametrize("count", [0, 7])
def test_spread_is_indexing_and_its_gradient_adds_up_where_a_row_is_read_often(count: int) -> None:
    x = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True, generator=torch.Generator().manual_seed(0))
    index = torch.randint(4, (count,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(spread(x, index), x[index])
    (grad,) = torch.autograd.grad(spread(x, index).sum(), x)
    assert grad[:, 0].tolist() == torch.bincount(index, minlength=4).tolist()


def test_rows_are_placed_and_taken_back_and_so_are_their_gradients() -> None:
    x = torch.randn(3, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    row, weight = torch.tensor([4, 0, 2]), torch.arange(10.0).view(5, 2)
    placed = place_rows(x, row, 5)
    assert torch.equal(placed[row], x)
    assert not placed[[1, 3]].any()
    (grad,) = torch.autograd.grad((placed * weight).sum(), x)
    assert torch.equal(grad, weight[row])
    taken = take_rows(placed.detach().requires_grad_(), row)
    assert torch.equal(taken, x)
    y = torch.zeros(5, 2, requires_grad=True)
    (grad,) = torch.autograd.grad((take_rows(y, row) * weight[:3]).sum(), y)
    assert torch.equal(grad, place_rows(weight[:3], row, 5))


def test_no_rows_at_all_are_placed_and_taken() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert not place_rows(torch.zeros(0, 2), none, 5).any()
    assert take_rows(torch.ones(5, 2), none).shape == (0, 2)


def test_number_of_frequencies_is_that_of_the_documentation() -> None:
    assert TimeEmbedding.num_frequencies == 128
    assert math.isclose(float(time_sinusoids(torch.tensor([1e-3]), 128)[0, 255]), math.sin(1.0), rel_tol=1e-4)
