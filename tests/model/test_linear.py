from __future__ import annotations

import torch
import torch.nn.functional as F

from oneflow_dist.model.linear import Linear


def test_a_linear_layer_is_that_of_torch_bitwise() -> None:
    layer, x = Linear(6, 4, bias=False), torch.randn(5, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_a_bias_is_added() -> None:
    layer, x = Linear(6, 4), torch.randn(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_the_product_of_one_layer_can_be_exchanged() -> None:
    layer, other, x = Linear(6, 4), Linear(6, 4), torch.randn(5, 6)
    layer.product = lambda x, weight: 2.0 * (x @ weight.t())
    torch.testing.assert_close(layer(x), 2.0 * F.linear(x, layer.weight) + layer.bias)
    torch.testing.assert_close(other(x), F.linear(x, other.weight, other.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]
