"""Low-rank adaptation: what is learnt beside a product of the trunk whose own weight stays."""

# Shapes: N rows, D inputs and n outputs of this rank, r the rank.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oneflow_dist.config import PRODUCTS, LoraConfig
from oneflow_dist.model.axis import ALONE, Axis, local_part
from oneflow_kernels.philox import philox


class Lora(nn.Module):
    """Two thin matrices, to be added to a product.

        (alpha / rank) * keep(x @ down.T) @ up.T

    Dropout keeps each of a row's r values or makes it 0: a mask of x would take longer than the products. Its draws
    belong to the pack, the product and the row, so they are the same on any layout and when a block is computed again.
    Nothing is dropped where no gradient is taken, or in `eval`.

    Over a tensor axis `up` is cut as outputs are, `down` as inputs are. Over a context axis each rank has its rows.

    Source: arXiv:2106.09685.
    """

    def __init__(self, num_inputs: int, num_outputs: int, config: LoraConfig, context: Axis = ALONE):
        super().__init__()
        self.context = context
        self.down = nn.Parameter(torch.empty(config.rank, num_inputs))
        self.up = nn.Parameter(torch.empty(num_outputs, config.rank))  # starts at 0
        self.scale, self.dropout = config.alpha / config.rank, config.dropout

    def forward(self, x: Float[Tensor, "N D"], draw: Int64[Tensor, ""] | None) -> Float[Tensor, "N n"]:
        inner = F.linear(x, local_part(self.down))
        if self.dropout > 0.0 and self.training and torch.is_grad_enabled():
            assert draw is not None, "dropout needs the draw of the pack"
            inner = inner * self._keep(inner, draw)
        return F.linear(inner, local_part(self.up)) * self.scale

    def _keep(self, inner: Float[Tensor, "N r"], draw: Int64[Tensor, ""]) -> Float[Tensor, "N r"]:
        """1 / (1 - dropout) of what is kept, 0 of the rest."""
        row, column = (torch.arange(size, device=inner.device) for size in inner.shape)
        zero = draw.new_zeros(())
        row = row + self.context.rank * len(inner)
        word, *_ = philox((row[:, None], column[None], zero, zero), (draw & 0xFFFFFFFF, draw >> 32))
        return (word >= self.dropout * 2.0**32).to(inner.dtype) / (1.0 - self.dropout)

    def added(self, down: Float[Tensor, "r D"], up: Float[Tensor, "n r"]) -> Float[Tensor, "n D"]:
        """What it adds to the weight of the product, with these values of its parameters."""
        return (up @ down) * self.scale


def add_lora(blocks: nn.ModuleList, config: LoraConfig, context: Axis = ALONE) -> None:
    """Give each of `lora.products` of every block its Lora, and keep its own weight as it is."""
    for block in blocks if config.rank else ():
        for name in config.products:
            product = block.get_submodule(name)
            assert isinstance(product, nn.Linear), name
            product.lora = Lora(product.in_features, product.out_features, config, context)
            product.weight.requires_grad_(False)


def draws_of_blocks(draw: Int64[Tensor, ""], num_blocks: int) -> Int64[Tensor, "b 4"]:
    """Of each of PRODUCTS of each block, from that of the pack."""
    return draw + torch.arange(num_blocks * len(PRODUCTS), device=draw.device).unflatten(0, (num_blocks, -1))
