"""Layers whose weights may be cut: each computes with its rank's part, on plain tensors."""

# Shapes: N rows, D width, n outputs of this rank.

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oneflow_dist.model.axis import ALONE, Axis, local_part
from oneflow_dist.model.lora import Lora


class Linear(nn.Linear):
    """`x @ weight.T + bias` with this rank's rows (or columns) of the weight.

    `product` is what a layer without bias computes with: F.linear, or the like in another precision; `lora` is added to
    it, with the draw of its dropout.
    """

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = True):
        super().__init__(num_inputs, num_outputs, bias=bias)
        self.lora: Lora | None = None

    def forward(self, x: Float[Tensor, "*N D"], draw: Int64[Tensor, ""] | None = None) -> Float[Tensor, "*N n"]:
        if self.bias is not None:
            return F.linear(x, local_part(self.weight), local_part(self.bias))
        out = self.product(x, local_part(self.weight))
        return out if self.lora is None else out + self.lora(x, draw)


class RMSNorm(nn.RMSNorm):
    """Each row divided by its root mean square, times a weight that all ranks hold."""

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return F.rms_norm(x, self.normalized_shape, local_part(self.weight), self.eps)


class VocabularyEmbedding(nn.Embedding):
    """A row for each token; the vocabulary is dealt out over the tensor axis."""

    def __init__(self, vocab_size: int, width: int, axis: Axis = ALONE):
        super().__init__(vocab_size, width)
        self.axis = axis

    def forward(self, tokens: Int64[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """The rows of those tokens that this rank holds, zeros for the others: what ranks have to sum."""
        weight = local_part(self.weight)
        if self.axis.size == 1:
            return F.embedding(tokens, weight)
        row = tokens - self.axis.local_slice(self.num_embeddings).start
        is_local = (row >= 0) & (row < len(weight))
        return F.embedding(row.where(is_local, 0), weight) * is_local[:, None]
