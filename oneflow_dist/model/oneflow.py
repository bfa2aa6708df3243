"""The network: what a packed batch looks like to one transformer, and what it says of it."""

# Shapes: N slots, B bag tokens, F slots that fire, I images, P patches, T trunk rows, S sequences, D width.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, Prediction
from oneflow_dist.model.embeddings import TimeEmbedding, gather_rows
from oneflow_dist.model.heads import InsertionHeads
from oneflow_dist.model.images import ImageAdapter
from oneflow_dist.model.trunk import Block, rotary_table


class OneFlow(nn.Module):
    """Tokens and noisy images in; missing tokens and velocities out. Knows nothing of schedules or losses.

    Source: arXiv:2510.03506 section 2.
    """

    def __init__(self, config: Config):
        super().__init__()
        model, image = config.model, config.image
        self.head_width = model.width // model.num_attention_heads
        self.rope_theta = model.rope_theta
        self.rope_scaling = model.rope_scaling
        self.time_conditioning = config.heads.time_conditioning
        self.embed = nn.Embedding(model.vocab_size, model.width)
        self.adapter = ImageAdapter(model.width, image, model.norm_eps)
        self.image_time = TimeEmbedding(model.width)
        self.text_time = TimeEmbedding(model.width) if self.time_conditioning != "none" else None
        is_modulated = image.time_conditioning == "adaln"
        self.blocks = nn.ModuleList(Block(model, is_modulated) for _ in range(model.num_layers))
        self.heads = InsertionHeads(model.width, model.norm_eps, is_modulated=self.time_conditioning == "adaln")
        self.unembed = None if model.tie_embeddings else nn.Linear(model.width, model.vocab_size, bias=False)

    def forward(self, batch: PackedBatch) -> Prediction:
        """One pass over a packed batch."""
        image_time = self.image_time(batch.image_time)
        text_time = self.text_time(batch.text_time) if self.text_time is not None else image_time[:0]
        x = self._embed_rows(batch, image_time, text_time)
        cos, sin = rotary_table(batch.position, self.head_width, self.rope_theta, self.rope_scaling)
        for block in self.blocks:
            x = block(x, image_time, batch.row_image, cos, sin, batch.cu_seqlens, batch.max_seqlen)

        velocity = self.adapter.decode(gather_rows(x, batch.patch_row), image_time, batch.patch_image).float()
        slot_hidden = self.heads.slot_hidden(gather_rows(x, batch.token_row), text_time, batch.token_sequence)
        zero_logit, log_rate, bag_nll = self.heads(slot_hidden, self._unembedding(), batch.bag_tokens, batch.bag_slot)
        return Prediction(
            zero_logit=zero_logit, log_rate=log_rate, bag_nll=bag_nll, velocity=velocity, slot_hidden=slot_hidden
        )

    def bag_logits(self, slot_hidden: Float[Tensor, "F D"]) -> Float32[Tensor, "F V"]:
        """Unnormalised log-probability of every token for the slots that fire, from `Prediction.slot_hidden`."""
        return F.linear(slot_hidden, self._unembedding()).float()

    def _unembedding(self) -> Float[Tensor, "V D"]:
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def _embed_rows(
        self, batch: PackedBatch, image_time: Float[Tensor, "I D"], text_time: Float[Tensor, "S D"]
    ) -> Float[Tensor, "T D"]:
        """The trunk's input: token embeddings, patches and, for "token" conditioning, the time on first tokens."""
        text = self.embed(batch.tokens)
        if self.time_conditioning == "token":
            is_first = batch.token_sequence.diff(prepend=batch.token_sequence.new_full((1,), -1)) > 0
            text = text + is_first[:, None] * gather_rows(text_time, batch.token_sequence)
        patches = self.adapter.encode(batch.patches, image_time, batch.patch_image)
        nothing = text.new_zeros(1, text.shape[1])
        return gather_rows(torch.cat([text, patches.to(text.dtype), nothing]), batch.row_source)
