from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneflow_dist.model.axis import Axis
from oneflow_dist.model.linear import Linear, RMSNorm, VocabularyEmbedding


def test_a_linear_layer_is_that_of_torch_bitwise() -> None:
    layer, x = Linear(6, 4, bias=False), torch.randn(5, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_a_bias_is_added() -> None:
    layer, x = Linear(6, 4), torch.randn(5, 6)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_the_product_of_one_layer_without_bias_can_be_exchanged() -> None:
    layer, other, x = Linear(6, 4, bias=False), Linear(6, 4, bias=False), torch.randn(5, 6)
    layer.product = lambda x, weight: 2.0 * (x @ weight.t())
    torch.testing.assert_close(layer(x), 2.0 * F.linear(x, layer.weight))
    assert torch.equal(other(x), F.linear(x, other.weight))
    assert list(layer.state_dict()) == ["weight"]


def test_a_layer_with_bias_keeps_its_product() -> None:
    """Those are few and small: heads, and what the time goes through."""
    layer, x = Linear(6, 4), torch.randn(5, 6)
    before = layer(x)
    layer.product = lambda x, weight: 2.0 * (x @ weight.t())
    assert torch.equal(layer(x), before)


def test_norm_divides_by_the_root_mean_square_and_multiplies_by_the_weight() -> None:
    norm, x = RMSNorm(6, eps=1e-2), torch.randn(5, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * torch.arange(6.0)
    torch.testing.assert_close(norm(x), expected)
    theirs = nn.RMSNorm(6, eps=1e-2)
    theirs.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), theirs(x))


def embeddings(size: int) -> tuple[nn.Embedding, list[VocabularyEmbedding]]:
    """Twelve tokens of width 4, and the parts of them that `size` ranks hold."""
    whole, parts = nn.Embedding(12, 4), []
    for rank in range(size):
        axis = Axis(rank=rank, size=size)
        part = VocabularyEmbedding(12, 4, axis)
        part.weight = nn.Parameter(whole.weight.detach()[axis.local_slice(12)].clone())
        parts.append(part)
    return whole, parts


TOKENS = torch.tensor([0, 11, 5, 6, 5, 0, 3, 8])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_that_ranks_look_up_sum_to_those_of_the_whole_vocabulary(size: int) -> None:
    whole, parts = embeddings(size)
    rows = [part(TOKENS) for part in parts]
    assert torch.equal(torch.stack(rows).sum(0), whole(TOKENS))
    holders = torch.stack([(row != 0.0).any(dim=1) for row in rows])
    assert torch.equal(holders.sum(0), torch.ones(8, dtype=torch.int64))  # one rank has a token, the others nothing


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_gradient_of_a_token_is_that_of_the_rank_that_holds_it(size: int) -> None:
    whole, parts = embeddings(size)
    up = torch.randn(8, 4)
    (expected,) = torch.autograd.grad(whole(TOKENS), whole.weight, up)
    found: list[Tensor] = [torch.autograd.grad(part(TOKENS), part.weight, up)[0] for part in parts]
    torch.testing.assert_close(torch.cat(found), expected)
    is_used = torch.isin(torch.arange(12), TOKENS)
    assert torch.equal((torch.cat(found) != 0.0).any(dim=1), is_used)
