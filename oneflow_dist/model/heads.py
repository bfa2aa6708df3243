"""Per slot: is a token missing, how many, and which."""

# Shapes: N slots, F slots that fire, B bag tokens, S sequences, D trunk width, v of the vocabulary on this rank.

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.model.axis import ALONE, Axis
from oneflow_dist.model.embeddings import Modulation, spread
from oneflow_dist.model.linear import Linear, RMSNorm
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.sample_bag import sample_bag
from oneflow_kernels.vocabulary_part import VocabularyPart

ORDERS = 3  # of the polynomial of the time left: 1, (1 - t), (1 - t)^2


class InsertionHeads(nn.Module):
    """Zero, rate and bag head; all three read the same hidden state of a slot.

    Without modulation they know nothing of time: the noisy sequence itself tells how far generation has come
    (arXiv:2510.03506, section 2.1.1 and Table 6). That is exact only where a document's length follows from what is
    there; see docs/decisions.

    Where they do, the odds that something is missing are a polynomial of the time left:

        (1 - pi) / pi = sum over k = 0, 1, 2 of exp(-zero_k) (1 - text time)^k

    since each text of k more tokens is as likely as its part of the data times (1 - text time)^k. What stands between
    its neighbours for sure is in the first term, which no lateness makes small; what may follow is in the others.

    `forward` scores the bag tokens instead of returning logits, since [N, V] logits would not fit; `draw` makes none
    either. The unembedding is an argument because it may be the embedding's weight; over the tensor axis each rank has
    v tokens of it.
    """

    def __init__(
        self,
        width: int,
        norm_eps: float,
        time_conditioning: Literal["none", "token", "adaln"],
        axis: Axis = ALONE,
        inserts: bool = True,
    ):
        """`inserts`: False leaves zero and rate head out; then every slot has one token."""
        super().__init__()
        self.axis = axis
        self.norm = RMSNorm(width, eps=norm_eps)
        self.modulation = Modulation(width, num_parts=2) if time_conditioning == "adaln" else None
        self.zero = Linear(width, 1 if time_conditioning == "none" else ORDERS) if inserts else None
        self.rate = Linear(width, 1) if inserts else None  # starts at rate = 1

    def slot_hidden(
        self,
        x: Float[Tensor, "N D"],
        time_embedding: Float[Tensor, "S D"] | None,
        token_sequence: Int64[Tensor, "N"],
    ) -> Float[Tensor, "N D"]:
        """What the heads read: the normed trunk output, modulated by the text time where they know it."""
        hidden = self.norm(x)
        if self.modulation is None or time_embedding is None:
            return hidden
        shift, scale = self.modulation(time_embedding)
        return hidden * spread(scale, token_sequence) + spread(shift, token_sequence)

    def forward(
        self,
        slot_hidden: Float[Tensor, "N D"],
        log_time_left: Float32[Tensor, "N"] | None,
        unembedding: Float[Tensor, "v D"],
        bag_tokens: Int64[Tensor, "B"],
        bag_slot: Int64[Tensor, "B"],
        bag_weight: Float32[Tensor, "B"],
        num_filled: int,
    ) -> tuple[Float32[Tensor, "N"] | None, Float32[Tensor, "N"] | None, Float[Tensor, ""]]:
        """Zero logit and log rate of every slot, and the bags' weighted loss (this rank's share)."""
        bags = bag_tokens, bag_slot, bag_weight, num_filled
        zero_logit, log_rate = None, None
        if self.zero is not None and self.rate is not None:
            zero = self.zero(slot_hidden).float()
            if log_time_left is None:
                zero_logit = zero.squeeze(-1)
            else:
                order = torch.arange(ORDERS, device=zero.device)
                zero_logit = -(order * log_time_left[:, None] - zero).logsumexp(-1)
            log_rate = self.rate(slot_hidden).squeeze(-1).float()
        return zero_logit, log_rate, bag_cross_entropy(slot_hidden, unembedding, *bags, part=self._part(unembedding))

    def draw(
        self,
        slot_hidden: Float[Tensor, "F D"],
        unembedding: Float[Tensor, "v D"],
        noise_key: Int64[Tensor, "F"],
        temperature: float,
        limit: int,
    ) -> Int64[Tensor, "F"]:
        """A token below `limit` for each slot; see `sample_bag`."""
        return sample_bag(slot_hidden, unembedding, noise_key, temperature, limit, part=self._part(unembedding))

    def _part(self, unembedding: Float[Tensor, "v D"]) -> VocabularyPart:
        axis = self.axis
        return VocabularyPart(size=axis.size, group=axis.group, first_token=axis.rank * len(unembedding))
