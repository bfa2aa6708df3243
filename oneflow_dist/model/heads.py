"""Per slot: is a token missing, how many, and which."""

# Shapes: N slots, B bag tokens, S sequences, D trunk width, V vocabulary.

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.model.embeddings import Modulation, gather_rows
from oneflow_dist.model.linear import Linear, RMSNorm
from oneflow_dist.model.tensor_axis import TensorAxis
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy, bag_scores


class InsertionHeads(nn.Module):
    """Zero, rate and bag head; all three read the same hidden state of a slot.

    Without modulation they know nothing of time: the noisy sequence itself tells how far generation has come
    (arXiv:2510.03506, section 2.1.1 and Table 6). That is exact only where a document's length follows from what is
    there; see docs/decisions.

    `forward` scores the bag tokens instead of returning logits, since [N, V] logits would not fit. The unembedding is
    an argument because it may be the embedding's weight; over the tensor axis each rank has v tokens of it.
    """

    def __init__(self, width: int, norm_eps: float, is_modulated: bool, axis: TensorAxis):
        super().__init__()
        self.axis = axis
        self.norm = RMSNorm(width, eps=norm_eps)
        self.modulation = Modulation(width, num_parts=2) if is_modulated else None
        self.zero = Linear(width, 1)  # starts at P(nothing missing) = 1/2
        self.rate = Linear(width, 1)  # starts at rate = 1

    def slot_hidden(
        self,
        x: Float[Tensor, "N D"],
        time_embedding: Float[Tensor, "S D"],
        token_sequence: Int64[Tensor, "N"],
    ) -> Float[Tensor, "N D"]:
        """What the heads read: the normed trunk output, modulated by the text time where they know it."""
        hidden = self.norm(x)
        if self.modulation is None:
            return hidden
        shift, scale = self.modulation(time_embedding)
        return hidden * gather_rows(scale, token_sequence) + gather_rows(shift, token_sequence)

    def forward(
        self,
        slot_hidden: Float[Tensor, "N D"],
        unembedding: Float[Tensor, "v D"],
        bag_tokens: Int64[Tensor, "B"],
        bag_slot: Int64[Tensor, "B"],
    ) -> tuple[Float32[Tensor, "N"], Float32[Tensor, "N"], Float32[Tensor, "B"]]:
        """Zero logit and log rate of every slot, and the loss of every bag token."""
        return (
            self.zero(slot_hidden).squeeze(-1).float(),
            self.rate(slot_hidden).squeeze(-1).float(),
            self._bag_nll(slot_hidden, unembedding, bag_tokens, bag_slot),
        )

    def _bag_nll(
        self,
        slot_hidden: Float[Tensor, "N D"],
        unembedding: Float[Tensor, "v D"],
        bag_tokens: Int64[Tensor, "B"],
        bag_slot: Int64[Tensor, "B"],
    ) -> Float32[Tensor, "B"]:
        """-log Q of each bag token; of the vocabulary's parts only their sums and the targets' logits travel."""
        if self.axis.size == 1:
            return bag_cross_entropy(slot_hidden, unembedding, bag_tokens, bag_slot)
        first_token = self.axis.rank * len(unembedding)
        own = bag_scores(slot_hidden, unembedding, bag_tokens - first_token, bag_slot)
        logsumexp, target = self.axis.gather(own[None]).unbind(1)
        return logsumexp.logsumexp(0) - target.sum(0)
