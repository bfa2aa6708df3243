"""Linear layers of the trunk, whose product can be exchanged for another."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """`product(x, weight)`, and the bias if there is one; `product` is F.linear or one in another precision."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def forward(self, x: Float[Tensor, "T K"]) -> Float[Tensor, "T N"]:
        y = self.product(x, self.weight)
        return y if self.bias is None else y + self.bias
