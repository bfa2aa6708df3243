"""The shared transformer: Llama-style blocks over packed rows, bidirectional inside a sequence unless causal."""

# Shapes: T trunk rows, t of them on this rank, r on the ranks of its tensor group, S1 sequences + 1, D trunk width,
# g key heads, q query heads on each, d head width, f = d / 2, I pieces.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor, nn

from oneflow_dist.config import ModelConfig
from oneflow_dist.model.axis import ALONE, Axis
from oneflow_dist.model.embeddings import Modulation
from oneflow_dist.model.kv_cache import KVCache
from oneflow_dist.model.linear import Linear, RMSNorm
from oneflow_kernels.packed_attention import packed_attention


class Sight(NamedTuple):
    """Which keys a row sees: those of its sequence, before `row_end` where there is one, and what earlier rows left."""

    cu_seqlens: Int32[Tensor, "S1"]
    max_seqlen: int  # of keys
    row_end: Int32[Tensor, "T"] | None = None
    cache: KVCache | None = None
    is_causal: bool = False  # in place of a `row_end` that is the row after each


class Attention(nn.Module):
    """Grouped-query attention within each sequence; the heads are dealt out over the tensor and the context axis.

    Query, key and value are one product. Its outputs go by key head, so that a part of them is what a tensor rank
    needs: the query heads that read the first key head, that key, its value; then those of the second; and so on.
    """

    def __init__(self, config: ModelConfig, axis: Axis = ALONE, context: Axis = ALONE):
        super().__init__()
        self.axis, self.context = axis, context
        self.head_width = config.width // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_kv_heads
        self.qkv = Linear(config.width, config.num_kv_heads * (self.group + 2) * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None
        self.out = Linear(config.num_attention_heads * self.head_width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "t D"],
        cos: Float32[Tensor, "r 1 f"],
        sin: Float32[Tensor, "r 1 f"],
        sight: Sight,
        draw: Int64[Tensor, "4"],
    ) -> Float[Tensor, "t D"]:
        x = self.axis.gather(x)
        heads = self.qkv(x, draw[0]).unflatten(-1, (-1, self.group + 2, self.head_width))
        query, key, value = heads.split((self.group, 1, 1), dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        cos, sin = cos[:, None], sin[:, None]
        query, key, value = self._deal_heads(rotate(query, cos, sin), rotate(key, cos, sin), value)
        key_seqlens = None
        if sight.cache is not None:
            (key, value), key_seqlens = sight.cache.join(key, value), sight.cache.seqlens
        row_end = sight.row_end if key_seqlens is None else None  # with keys of earlier passes a row sees all there are
        rows = sight.cu_seqlens, sight.max_seqlen, sight.is_causal, row_end, key_seqlens
        attended = self.context.deal_rows(packed_attention(query, key, value, *rows)).flatten(1)
        return self.axis.scatter_sum(self.out(attended, draw[1]))

    def _deal_heads(
        self, query: Float[Tensor, "r g q d"], key: Float[Tensor, "r g 1 d"], value: Float[Tensor, "r g 1 d"]
    ) -> tuple[Float[Tensor, "T _ d"], Float[Tensor, "T _ d"], Float[Tensor, "T _ d"]]:
        """All rows of the heads that this rank of a context group attends with; a key head goes to all that read it.

        They travel together, since each message has to be waited for.
        """
        if self.context.size > 1:
            copies = max(1, self.context.size // key.shape[1])
            query = query.unflatten(2, (copies, -1)).flatten(1, 2)
            key, value = (x.repeat_interleave(copies, 1) for x in (key, value))
            parts = (query.shape[2], 1, 1)
            query, key, value = self.context.deal_columns(torch.cat([query, key, value], 2)).split(parts, dim=2)
        return query.flatten(1, 2), key.squeeze(2), value.squeeze(2)


class MLP(nn.Module):
    """SwiGLU; its hidden width is dealt out over the tensor axis.

    Gate and up are one product, in as many parts as a tensor axis may ever have ranks: first the gates of a part, then
    what they gate.
    """

    def __init__(self, config: ModelConfig, axis: Axis = ALONE):
        super().__init__()
        self.axis = axis
        self.part_width = config.mlp_width // math.gcd(config.num_kv_heads, config.mlp_width)
        self.gate_up = Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "t D"], draw: Int64[Tensor, "4"]) -> Float[Tensor, "t D"]:
        gate, up = self.gate_up(self.axis.gather(x), draw[2]).unflatten(-1, (-1, 2, self.part_width)).unbind(-2)
        return self.axis.scatter_sum(self.down((F.silu(gate) * up).flatten(-2), draw[3]))


class Block(nn.Module):
    """Attention and MLP, each after a norm; with `is_modulated`, rows of pieces pass through AdaLN-Zero."""

    def __init__(self, config: ModelConfig, is_modulated: bool, axis: Axis = ALONE, context: Axis = ALONE):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, axis, context)
        self.mlp_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config, axis)
        self.modulation = Modulation(config.width, num_parts=6) if is_modulated else None

    def forward(
        self,
        x: Float[Tensor, "t D"],
        condition: Float[Tensor, "I D"],
        row_piece: Int64[Tensor, "_"],
        cos: Float32[Tensor, "r 1 f"],
        sin: Float32[Tensor, "r 1 f"],
        sight: Sight,
        draw: Int64[Tensor, "4"],
    ) -> Float[Tensor, "t D"]:
        """One layer; `condition` (of a piece's time) modulates the rows of piece `row_piece`: t of them, or of none.

        Args:
            draw: of the dropout in each product that has a Lora.
        """
        if self.modulation is None:
            x = x + self.attention(self.attention_norm(x), cos, sin, sight, draw)
            return x + self.mlp(self.mlp_norm(x), draw)
        # Rows that are no patches take the extra last line: shift 0, scale 1, gate 1.
        parts = self.modulation(condition)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            F.embedding(row_piece, F.pad(part, (0, 0, 0, 1), value=neutral))
            for part, neutral in zip(parts, (0.0, 1.0, 1.0) * 2, strict=True)
        )
        h = self.attention_norm(x) * scale + shift
        x = x + gate * self.attention(h, cos, sin, sight, draw)
        h = self.mlp_norm(x) * mlp_scale + mlp_shift
        return x + mlp_gate * self.mlp(h, draw)


def rotary_table(
    position: Float32[Tensor, "T 3"], head_width: int, theta: float, scaling: float
) -> tuple[Float32[Tensor, "T 1 f"], Float32[Tensor, "T 1 f"]]:
    """Cosine and sine of the rotation of every row.

    Frequency j turns with axis j mod 3 of the position, so that each axis has fast and slow frequencies. A text row has
    the same position on all axes: there this is the rotary embedding of Llama.

    Args:
        scaling: how far Llama 3's long contexts stretch slow frequencies; 1 is none.

    Source: arXiv:2104.09864; axes after arXiv:2409.12191.
    """
    frequency = rotary_frequency(head_width, theta, scaling, position.device)
    axis = torch.arange(head_width // 2, device=position.device) % 3
    angle = position[:, axis] * frequency
    return angle.cos()[:, None], angle.sin()[:, None]


def rotary_frequency(head_width: int, theta: float, scaling: float, device: torch.device) -> Float32[Tensor, "f"]:
    """Radians per position of each pair, to the bit as Hugging Face computes them: positions multiply what differs.

    With w the wavelength in positions, Llama 3 keeps what turns at least four times within its first training's 8192
    positions, divides by `scaling` what does not turn once, and goes from one to the other between:

        smooth = clamp((8192 / w - 1) / (4 - 1), 0, 1)
        frequency = (1 - smooth) * frequency / scaling + smooth * frequency

    Source: arXiv:2407.21783 and its published model configs.
    """
    frequency = 1.0 / theta ** (torch.arange(0, head_width, 2, device=device).float() / head_width)
    if scaling == 1.0:
        return frequency
    turns = 8192 / (2 * math.pi / frequency)
    smooth = ((turns - 1.0) / 3.0).clamp(0.0, 1.0)
    return (1.0 - smooth) * frequency / scaling + smooth * frequency


def rotate(
    x: Float[Tensor, "T *h d"], cos: Float32[Tensor, "T *ones f"], sin: Float32[Tensor, "T *ones f"]
) -> Float[Tensor, "T *h d"]:
    """Turn each pair (j, j + d/2) of `x` by its row's angle; in float32, back in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
