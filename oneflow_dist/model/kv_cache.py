"""Keys and values that rows of earlier passes have left behind."""

# Shapes: T rows of this pass, P rows of earlier ones, U = P + T keys, S1 sequences + 1, g key heads, d head width.

from __future__ import annotations

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor


class KVCache:
    """Of one layer and one pass: keys and values of rows that are not computed again, beside those of its own rows."""

    def __init__(
        self,
        before: Float[Tensor, "2 P g d"] | None,
        order: Int64[Tensor, "U"] | None,
        seqlens: Int32[Tensor, "S1"] | None,
    ):
        """Of rows that have to be computed, beside what is there already.

        Args:
            order: all keys, by sequence, as numbers of `before`, then of this pass's rows; None: as they are.
            seqlens: of all keys, of which each row sees those of its sequence; None: there is nothing before, and rows
                see each other as the batch says.
        """
        self.before = before
        self.order = order
        self.seqlens = seqlens  # the first key of each sequence, then U
        self.new: Float[Tensor, "2 T g d"] | None = None  # what this pass adds

    def join(
        self, key: Float[Tensor, "T g d"], value: Float[Tensor, "T g d"]
    ) -> tuple[Float[Tensor, "U g d"], Float[Tensor, "U g d"]]:
        """All keys and values, sequence by sequence."""
        self.new = torch.stack([key, value])
        if self.before is not None:
            key, value = torch.cat([self.before[0], key]), torch.cat([self.before[1], value])
        if self.order is not None:
            key, value = key.index_select(0, self.order), value.index_select(0, self.order)
        return key, value
