"""Each step between the products, on both backends, against what its docstring says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oneflow_kernels import bag_operations as operations
from oneflow_kernels import bag_operations_kernels
from tests.kernels.bags import poison

LOW = [torch.float32, torch.bfloat16, torch.float16]
every_backend = pytest.mark.parametrize("backend", ["reference", "triton"])
STARTS = torch.tensor([2, 4, 4, 5, 8])  # of four slots; the first two and the last two bag tokens are other slots'
BAG_TOKENS = torch.tensor([1, 2, 0, 5, 4, 69, -3, 70, 3, 3])
OWN = slice(2, 8)
ROW = torch.tensor([0, 0, 2, 3, 3, 3])


@pytest.fixture
def _poisoned_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    poison(monkeypatch)


poisoned = pytest.mark.usefixtures("_poisoned_backend")


def make_chunk(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What `softmax_` is given: four slots, 70 tokens of which two bag tokens are outside."""
    generator = torch.Generator().manual_seed(1)
    logits = 3.0 * torch.randn(4, 70, generator=generator)
    weight = torch.rand(len(BAG_TOKENS), generator=generator)
    return logits, torch.empty(4, 70, dtype=dtype), torch.full((len(BAG_TOKENS),), 99.0), BAG_TOKENS, weight, STARTS


@every_backend
@poisoned
@pytest.mark.parametrize("dtype", LOW)
def test_logits_become_probabilities(dtype: torch.dtype) -> None:
    logits, probs, target, tokens, weight, starts = make_chunk(dtype)
    lse, base, mass = operations.softmax_(logits, probs, target, tokens, weight, starts)
    z, exact = logits.double(), logits.double().softmax(-1)
    torch.testing.assert_close(lse.double(), z.logsumexp(-1), rtol=1e-6, atol=1e-6)
    found = probs.double() * (base - lse).double().exp()[:, None]
    assert ((found - exact).abs() <= 0.6 * max(torch.finfo(dtype).eps, 1e-5) * exact + 1e-7).all()
    torch.testing.assert_close(mass, torch.zeros(4).index_add(0, ROW, weight[OWN]))
    is_own = (tokens[OWN] >= 0) & (tokens[OWN] < 70)
    own = tokens[OWN].where(is_own, 0)
    torch.testing.assert_close(target[OWN].double(), z[ROW, own] * is_own, rtol=1e-6, atol=1e-6)
    assert target[[0, 1, 8, 9]].tolist() == [99.0] * 4  # of other chunks


@every_backend
@poisoned
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("is_rising", [True, False])
def test_a_row_that_rises_far_keeps_its_precision(dtype: torch.dtype, is_rising: bool) -> None:
    """Over five blocks of the kernel; what was written of the first ones is measured anew, more than once."""
    logits = torch.linspace(-150.0, 150.0, 18000).expand(2, -1).clone()
    logits = logits if is_rising else logits.flip(1)
    logits[1] *= 0.2
    expected = logits.double().softmax(-1)
    nothing, probs = torch.zeros(0), torch.empty_like(logits, dtype=dtype)
    starts = torch.zeros(3, dtype=torch.int64)
    lse, base, mass = operations.softmax_(logits, probs, nothing, starts[:0], nothing.clone(), starts)
    found = probs.double() * (base - lse).double().exp()[:, None]
    assert mass.tolist() == [0.0, 0.0]
    assert (found - expected).abs().max() < 2.0 * max(torch.finfo(dtype).eps, 1e-5) * expected.max()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=torch.float64), rtol=5e-3, atol=0.0)


@every_backend
@poisoned
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("others", [-torch.inf, 0.0, 15.0, 90.0])
def test_probabilities_become_gradients(dtype: torch.dtype, others: float) -> None:
    """With another part of the vocabulary, perhaps far above ours; a token that comes twice; a bag without weight."""
    logits, probs, target, tokens, weight, starts = make_chunk(dtype)
    tokens, weight = tokens.clone(), weight.clone()
    tokens[3], weight[4] = tokens[2], 0.0
    lse, base, mass = operations.softmax_(logits, probs, target, tokens, weight, starts)
    lse = torch.logaddexp(lse, torch.tensor(others))
    base, shrink = operations.base_of_gradients(base, lse, torch.tensor([0.5, 1.0, 1.0, 0.3]), dtype)
    row = torch.tensor([-2, -1, *ROW, 4, 7])
    operations.one_hot_(probs, shrink, base, lse, mass, target, tokens, weight, row, starts)

    expected = mass[:, None] * (logits.double() - lse[:, None]).exp()
    for pair in range(2, 8):
        if 0 <= tokens[pair] < 70:
            expected[row[pair], tokens[pair]] -= weight[pair].double()
    found = probs.double() * (mass * (base - lse).exp())[:, None]
    eps = max(torch.finfo(dtype).eps, 1e-5)
    assert ((found - expected).abs() <= 1.2 * eps * expected.abs() + 1e-6).all()
    assert (found[[1, 2]] == 0.0).all()


@every_backend
@poisoned
def test_a_large_bag_counts_all_that_are_alike() -> None:
    """Over several blocks of bag tokens, with neighbours."""
    generator = torch.Generator().manual_seed(0)
    row = torch.tensor([0] * 5 + [1] * 150 + [2] * 3)
    tokens, weight = torch.randint(40, (158,), generator=generator), torch.rand(158, generator=generator)
    starts, zeros = torch.tensor([0, 5, 155, 158]), torch.zeros(3)
    mass, target = zeros.index_add(0, row, weight), torch.full((158,), -torch.inf)
    probs = torch.zeros(3, 40)
    operations.one_hot_(probs, zeros + 1.0, zeros, zeros, mass, target, tokens, weight, row, starts)
    expected = torch.zeros(3, 40).index_put((row, tokens), weight / mass[row], accumulate=True)
    torch.testing.assert_close(probs, -expected, rtol=1e-5, atol=1e-7)


def test_a_bags_own_tokens_are_not_rounded_with_the_base_of_gradients() -> None:
    base, lse, share = 10.0 * torch.randn(100), torch.full((100,), 30.0), torch.rand(100) + 1e-3
    for dtype in (torch.bfloat16, torch.float16):
        new_base, shrink = operations.base_of_gradients(base, lse, share, dtype)
        one_hot = share * (lse - new_base).exp()
        torch.testing.assert_close(one_hot.to(dtype).float(), one_hot, rtol=1e-5, atol=0.0)
        assert torch.isfinite(one_hot.to(dtype)).all()
        assert (((base - new_base).exp() / shrink - 1.0).abs() < torch.finfo(dtype).eps).all()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 530])
def test_bag_logits_are_those_of_the_pairs(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, width: int
) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    poison(monkeypatch)
    hidden, weight = torch.randn(5, width).to(dtype), torch.randn(9, width).to(dtype)
    tokens, slot = torch.tensor([3, 8, 3, -1, 9, 0, 5, 5, 5, 1]), torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 4, 4])
    expected = (hidden[slot].double() * weight[tokens.clamp(0, 8)].double()).sum(-1)
    expected[3:5] = 0.0
    own = operations.bag_token_logits(hidden, weight, tokens, slot)
    torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_sum_wide_and_round_once(dtype: torch.dtype) -> None:
    a, b = torch.randn(5, 300).to(dtype), torch.randn(300, 7).to(dtype)
    exact = a.double() @ b.double()
    out = torch.full((5, 7), torch.nan, dtype=operations.wide(dtype))
    operations.product_(out, a, b, False)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
    operations.product_(out, a, b, True)
    torch.testing.assert_close(out.double(), 2.0 * exact, rtol=1e-5, atol=1e-4)
    narrow = torch.zeros(5, 7, dtype=dtype)
    operations.product_(narrow, a, b, True)
    torch.testing.assert_close(narrow, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_probabilities_fit_in_their_dtype_until_they_are_measured_anew() -> None:
    for dtype, reach in bag_operations_kernels.REACH.items():
        assert torch.tensor(reach).exp() < torch.finfo(dtype).max / 2.0


def test_gradients_fit_in_their_dtype() -> None:
    for dtype, room in operations.ROOM.items():
        assert torch.tensor(room + 1.0, dtype=torch.float64).exp() < torch.finfo(dtype).max


def test_operations_are_as_they_are_registered() -> None:
    hidden, weight = torch.randn(5, 6), torch.randn(70, 6)
    logits, *rest = make_chunk(torch.bfloat16)
    sums, row = torch.rand(4), torch.tensor([-2, -1, *ROW, 4, 7])
    operands = {
        "product_": (torch.empty(5, 70), hidden, weight.T, False),
        "bag_softmax_": (logits, *rest),
        "bag_one_hot_": (torch.rand(4, 70), sums, sums, sums, sums, *rest[1:4], row, STARTS),
        "bag_logits": (hidden, weight, BAG_TOKENS, torch.arange(10) // 2),
    }
    for name, arguments in operands.items():
        torch.library.opcheck(getattr(torch.ops.oneflow, name), arguments)
