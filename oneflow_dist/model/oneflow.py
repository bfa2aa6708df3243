"""The network: what a packed batch looks like to one transformer, and what it says of it."""

# Shapes: N slots, B bag tokens, F slots that fire, I images, P patches, T trunk rows, t of them on this rank,
# S sequences, D width, v of the vocabulary on this rank.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, Prediction
from oneflow_dist.model.embeddings import TimeEmbedding, place_rows, take_rows
from oneflow_dist.model.heads import InsertionHeads
from oneflow_dist.model.images import ImageAdapter
from oneflow_dist.model.linear import Linear, VocabularyEmbedding
from oneflow_dist.model.tensor_axis import NO_TENSOR_AXIS, TensorAxis, local_part
from oneflow_dist.model.trunk import Block, rotary_table


class OneFlow(nn.Module):
    """Tokens and noisy images in; missing tokens and velocities out. Knows nothing of schedules.

    Of losses it knows that of the bags, since logits of all tokens exist nowhere outside.

    Over a tensor axis all ranks get the same batch and say the same; the trunk between is shared.

    Source: arXiv:2510.03506 section 2.
    """

    def __init__(self, config: Config, axis: TensorAxis = NO_TENSOR_AXIS):
        super().__init__()
        model, image = config.model, config.image
        self.axis = axis
        self.is_whole = False  # whether this rank keeps all of every parameter on its device; `shard_model` knows
        self.head_width = model.width // model.num_attention_heads
        self.rope_theta = model.rope_theta
        self.rope_scaling = model.rope_scaling
        self.time_conditioning = config.heads.time_conditioning
        self.embed = VocabularyEmbedding(model.vocab_size, model.width, axis)
        self.adapter = ImageAdapter(model.width, image, model.norm_eps)
        self.image_time = TimeEmbedding(model.width)
        self.text_time = TimeEmbedding(model.width) if self.time_conditioning != "none" else None
        is_modulated = image.time_conditioning == "adaln"
        self.blocks = nn.ModuleList(Block(model, is_modulated, axis) for _ in range(model.num_layers))
        is_modulated = self.time_conditioning == "adaln"
        self.heads = InsertionHeads(model.width, model.norm_eps, is_modulated, axis)
        self.unembed = None if model.tie_embeddings else Linear(model.width, model.vocab_size, bias=False)

    def forward(self, batch: PackedBatch) -> Prediction:
        """One pass over a packed batch."""
        image_time = self.image_time(batch.image_time)
        text_time = self.text_time(batch.text_time) if self.text_time is not None else image_time[:0]
        x = self._embed_rows(batch, image_time, text_time)
        cos, sin = rotary_table(batch.position, self.head_width, self.rope_theta, self.rope_scaling)
        row_image = batch.row_image[self.axis.local_slice(len(batch.row_image))]
        for block in self.blocks:
            x = block(x, image_time, row_image, cos, sin, batch.cu_seqlens, batch.max_seqlen)
        x = self.axis.gather(x)

        rows = take_rows(x, torch.cat([batch.token_row, batch.patch_row]))
        of_tokens, of_patches = rows.split((len(batch.tokens), len(batch.patches)))
        velocity = self.adapter.decode(of_patches, image_time, batch.patch_image).float()
        slot_hidden = self.heads.slot_hidden(of_tokens, text_time, batch.token_sequence)
        bags = batch.bag_tokens, batch.bag_slot, batch.bag_weight, batch.num_filled
        zero_logit, log_rate, bag_loss = self.heads(slot_hidden, self._unembedding(), *bags)
        return Prediction(
            zero_logit=zero_logit,
            log_rate=log_rate,
            bag_loss=bag_loss,
            velocity=velocity,
            slot_hidden=slot_hidden,
        )

    def bag_logits(self, slot_hidden: Float[Tensor, "F D"]) -> Float32[Tensor, "F v"]:
        """Unnormalised log-probability of this rank's tokens for the slots that fire, from `Prediction.slot_hidden`."""
        return F.linear(slot_hidden, self._unembedding()).float()

    def draw_tokens(
        self, slot_hidden: Float[Tensor, "F D"], noise_key: Int64[Tensor, "F"], temperature: float, limit: int
    ) -> Int64[Tensor, "F"]:
        """A token below `limit` for each slot that fires, from its local_rows distribution; the same on all ranks."""
        return self.heads.draw(slot_hidden, self._unembedding(), noise_key, temperature, limit)

    def _unembedding(self) -> Float[Tensor, "v D"]:
        return local_part(self.embed.weight if self.unembed is None else self.unembed.weight)

    def _embed_rows(
        self, batch: PackedBatch, image_time: Float[Tensor, "I D"], text_time: Float[Tensor, "S D"]
    ) -> Float[Tensor, "t D"]:
        """The trunk's input, of this rank's rows.

            token    embed(token), and with "token" conditioning the text time on the first of a sequence
            patch    adapter(patch)
            padding  zeros

        Over a tensor axis each rank has a part of the embedding and answers for the patches on its own rows.
        """
        num_rows = len(batch.position)
        text = self.embed(batch.tokens)
        patches = self.adapter.encode(batch.patches, image_time, batch.patch_image).to(text.dtype)
        if self.time_conditioning == "token":
            first = torch.searchsorted(batch.token_sequence, torch.arange(len(text_time), device=text.device))
            own_time = self.axis.own_rows(text_time.to(text.dtype), batch.token_row[first], num_rows)
            text = text + place_rows(own_time, first, len(text))
        rows = torch.cat([text, self.axis.own_rows(patches, batch.patch_row, num_rows)])
        place = torch.cat([batch.token_row, batch.patch_row])
        return self.axis.scatter_sum(place_rows(rows, place, num_rows))
