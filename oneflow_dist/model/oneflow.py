"""The network: what a packed batch looks like to one transformer, and what it says of it."""

# Shapes: N slots, B bag tokens, F slots that fire, I pieces, P patches, T trunk rows, t of them on this rank,
# r on the ranks of its tensor group, S sequences, D width, v of the vocabulary on this rank.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, Prediction
from oneflow_dist.model.adapters import Adapter, Encoded, GivenAdapter
from oneflow_dist.model.axis import ALONE, Axis, local_part
from oneflow_dist.model.embeddings import TimeEmbedding, log_time_left, place_rows, spread, take_rows
from oneflow_dist.model.heads import InsertionHeads
from oneflow_dist.model.kv_cache import KVCache
from oneflow_dist.model.linear import Linear, VocabularyEmbedding
from oneflow_dist.model.lora import add_lora, draws_of_blocks
from oneflow_dist.model.trunk import Block, Sight, rotary_table


class OneFlow(nn.Module):
    """Tokens and noisy pieces in; missing tokens and velocities out. Knows nothing of schedules.

    Of losses it knows that of the bags, since logits of all tokens exist nowhere outside.

    Over a tensor axis all ranks get the same batch and say the same; the trunk between is shared. Over a context axis
    each gets the tokens and patches of its own rows (`deal_pack`), and says what it has to say of them.

    Source: arXiv:2510.03506 section 2.
    """

    def __init__(self, config: Config, axis: Axis = ALONE, context: Axis = ALONE):
        super().__init__()
        model = config.model
        self.axis, self.context = axis, context
        self.is_seen_whole = tuple(modality.is_seen_whole for modality in config.modality.values())
        self.is_whole = False  # whether this rank keeps all of every parameter on its device; `shard_model` knows
        self.head_width = model.width // model.num_attention_heads
        self.rope_theta = model.rope_theta
        self.rope_scaling = model.rope_scaling
        self.time_conditioning = config.heads.time_conditioning
        self.embed = VocabularyEmbedding(model.vocab_size, model.width, axis)
        self.adapters = nn.ModuleDict()
        for name, modality in config.modality.items():
            own = (model.width, modality, model.norm_eps, config.heads.time_conditioning == "adaln")
            self.adapters[name] = Adapter(*own) if modality.is_target else GivenAdapter(model.width, modality)
        self.is_causal = config.objective.looks_back and not config.modality  # what every kernel knows
        self.is_modulated = [m.is_target and m.time_conditioning == "adaln" for m in config.modality.values()]
        self.text_time = TimeEmbedding(model.width, is_of_text=True) if self.time_conditioning != "none" else None
        self.blocks = nn.ModuleList(
            Block(model, any(self.is_modulated), axis, context) for _ in range(model.num_layers)
        )
        add_lora(self.blocks, config.lora, context)
        own_heads = (model.width, model.norm_eps, self.time_conditioning, axis, config.objective.inserts)
        self.heads = InsertionHeads(*own_heads)
        self.unembed = None if model.tie_embeddings else Linear(model.width, model.vocab_size, bias=False)

    def forward(self, batch: PackedBatch, caches: Sequence[KVCache | None] = ()) -> Prediction:
        """One pass over a packed batch.

        Args:
            caches: of each layer what rows of earlier passes left, which these rows see, too; (): nothing.
        """
        adapters: list[Any] = list(self.adapters.values())
        text_time = self.text_time(batch.text_time) if self.text_time is not None else None
        encoded = [adapter.encode(pieces) for adapter, pieces in zip(adapters, batch.pieces, strict=True)]
        x = self._embed_rows(batch, encoded, text_time)
        own = self.context.local_slice(len(batch.position))
        cos, sin = rotary_table(batch.position[own], self.head_width, self.rope_theta, self.rope_scaling)
        if batch.attention_scale is not None:  # half of it on queries, half on keys
            root = batch.attention_scale[own].sqrt()[:, None, None]
            cos, sin = root * cos, root * sin
        condition, row_piece = self._condition(batch, encoded, x)
        draws = draws_of_blocks(batch.draw, len(self.blocks))
        caches = caches or [None] * len(self.blocks)
        for block, draw, cache in zip(self.blocks, draws, caches, strict=True):
            is_causal = self.is_causal and cache is None
            row_end = None if is_causal else batch.row_end
            sight = Sight(batch.cu_seqlens, batch.max_seqlen, row_end, cache, is_causal)
            x = block(x, condition, row_piece, cos, sin, sight, draw)
        x = self.axis.gather(x)
        if any(self.is_seen_whole):
            x, own = self.context.gather(x), slice(0, len(batch.position))

        places = [batch.token_row, *(pieces.patch_row for pieces in batch.pieces)]
        of_tokens, *of_patches = take_rows(x, torch.cat(places) - own.start).split([len(place) for place in places])
        slot_hidden = self.heads.slot_hidden(of_tokens, text_time, batch.token_sequence)
        velocity = [
            adapter.decode(rows, pieces, own, text_time)
            for adapter, rows, pieces, own in zip(adapters, of_patches, batch.pieces, encoded, strict=True)
        ]
        bags = batch.bag_tokens, batch.bag_slot, batch.bag_weight, batch.num_filled
        time_left = None
        if self.time_conditioning != "none":
            time_left = log_time_left(batch.text_time)[batch.token_sequence]
        zero_logit, log_rate, bag_loss = self.heads(slot_hidden, time_left, self._unembedding(), *bags)
        return Prediction(
            zero_logit=zero_logit,
            log_rate=log_rate,
            bag_loss=bag_loss,
            velocity=tuple(velocity),
            slot_hidden=slot_hidden,
        )

    @property
    def num_parts(self) -> int:
        """In how many parts the rows of a pack are dealt out."""
        return self.axis.size * self.context.size

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

    def load_encoders(self, device: torch.device) -> None:
        """Read the frozen encoders of modalities whose `understanding` is live."""
        for adapter in self.adapters.values():
            if isinstance(adapter, GivenAdapter):
                adapter.load_encoder(device)

    def _embed_rows(
        self, batch: PackedBatch, encoded: list[Encoded], text_time: Float[Tensor, "S D"] | None
    ) -> Float[Tensor, "t D"]:
        """The trunk's input, of this rank's rows.

            token    embed(token), and with "token" conditioning the text time on the first of a sequence
            patch    what its adapter makes of it
            padding  zeros

        Over a tensor axis each rank has a part of the embedding and answers for the patches on its own rows.
        """
        own = self.context.local_slice(len(batch.position))
        text = self.embed(batch.tokens)
        given, places = [text], [batch.token_row]
        if self.time_conditioning == "token" and text_time is not None:
            is_first = (batch.position[batch.token_row, 0] == 0.0).to(text.dtype)
            times = spread(text_time.to(text.dtype), batch.token_sequence) * is_first[:, None]
            given = [text + self.axis.own_rows(times, batch.token_row - own.start, own.stop - own.start)]
        for of_kind, pieces in zip(encoded, batch.pieces, strict=True):
            rows = of_kind.rows.to(text.dtype)
            given.append(self.axis.own_rows(rows, pieces.patch_row - own.start, own.stop - own.start))
            places.append(pieces.patch_row)
        whole = slice(0, len(batch.position)) if any(self.is_seen_whole) else own
        x = place_rows(torch.cat(given), torch.cat(places) - whole.start, whole.stop - whole.start)
        return self.axis.scatter_sum(x[own.start - whole.start : own.stop - whole.start])

    def _condition(
        self, batch: PackedBatch, encoded: list[Encoded], x: Float[Tensor, "t D"]
    ) -> tuple[Float[Tensor, "I D"], Int64[Tensor, "_"]]:
        """The times of pieces that modulate the blocks, and for each of this rank's rows which of them does.

        Rows that none modulates have the number after the last one. Where no block is modulated, both are empty.
        """
        if not any(self.is_modulated):
            return x[:0], batch.token_row[:0]
        condition = torch.cat([own.time for own, does in zip(encoded, self.is_modulated, strict=True) if does])
        row_piece, first = batch.token_row.new_full((len(batch.position),), len(condition)), 0
        for pieces, does in zip(batch.pieces, self.is_modulated, strict=True):
            if does:
                row_piece = row_piece.index_copy(0, pieces.patch_row, pieces.patch_piece + first)
                first += len(pieces.time)
        row_piece = row_piece[self.context.local_slice(len(row_piece))]
        return condition, row_piece[self.axis.local_slice(len(row_piece))]
