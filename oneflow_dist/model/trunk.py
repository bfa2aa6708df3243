"""The shared transformer: Llama-style blocks over packed rows, bidirectional inside a sequence."""

# Shapes: T trunk rows, S1 sequences + 1, D trunk width, h query heads, g key and value heads, d head width, f = d / 2,
# I images.

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor, nn

from oneflow_dist.config import ModelConfig
from oneflow_dist.model.embeddings import Modulation, gather_rows
from oneflow_dist.model.linear import Linear
from oneflow_kernels.packed_attention import packed_attention


class Attention(nn.Module):
    """Grouped-query attention within each sequence."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_width = config.width // config.num_attention_heads
        self.query = Linear(config.width, config.num_attention_heads * self.head_width, bias=False)
        self.key = Linear(config.width, config.num_kv_heads * self.head_width, bias=False)
        self.value = Linear(config.width, config.num_kv_heads * self.head_width, bias=False)
        self.out = Linear(config.num_attention_heads * self.head_width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        cos: Float32[Tensor, "T 1 f"],
        sin: Float32[Tensor, "T 1 f"],
        cu_seqlens: Int32[Tensor, "S1"],
        max_seqlen: int,
    ) -> Float[Tensor, "T D"]:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_width)) for project in (self.query, self.key, self.value)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return self.out(packed_attention(query, key, value, cu_seqlens, max_seqlen).flatten(1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Linear(config.width, config.mlp_width, bias=False)
        self.up = Linear(config.width, config.mlp_width, bias=False)
        self.down = Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and MLP, each after a norm; with `is_modulated`, image rows pass through AdaLN-Zero."""

    def __init__(self, config: ModelConfig, is_modulated: bool):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.modulation = Modulation(config.width, num_parts=6) if is_modulated else None

    def forward(
        self,
        x: Float[Tensor, "T D"],
        image_embedding: Float[Tensor, "I D"],
        row_image: Int64[Tensor, "T"],
        cos: Float32[Tensor, "T 1 f"],
        sin: Float32[Tensor, "T 1 f"],
        cu_seqlens: Int32[Tensor, "S1"],
        max_seqlen: int,
    ) -> Float[Tensor, "T D"]:
        """One layer; `image_embedding` (of the image's time) modulates the rows of image `row_image`."""
        if self.modulation is None:
            x = x + self.attention(self.attention_norm(x), cos, sin, cu_seqlens, max_seqlen)
            return x + self.mlp(self.mlp_norm(x))
        # Rows that are no patches take the extra last line: shift 0, scale 1, gate 1.
        parts = self.modulation(image_embedding)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            gather_rows(F.pad(part, (0, 0, 0, 1), value=neutral), row_image)
            for part, neutral in zip(parts, (0.0, 1.0, 1.0) * 2, strict=True)
        )
        h = self.attention_norm(x) * scale + shift
        x = x + gate * self.attention(h, cos, sin, cu_seqlens, max_seqlen)
        h = self.mlp_norm(x) * mlp_scale + mlp_shift
        return x + mlp_gate * self.mlp(h)


def rotary_table(
    position: Int32[Tensor, "T 3"], head_width: int, theta: float
) -> tuple[Float32[Tensor, "T 1 f"], Float32[Tensor, "T 1 f"]]:
    """Cosine and sine of the rotation of every row.

    Frequency j turns with axis j mod 3 of the position, so that each axis has fast and slow frequencies. A text row has
    the same position on all axes: there this is the rotary embedding of Llama.

    Source: arXiv:2104.09864; axes after arXiv:2409.12191.
    """
    frequency = torch.arange(0, head_width, 2, device=position.device).float()
    inverse = theta ** (-frequency / head_width)
    axis = torch.arange(head_width // 2, device=position.device) % 3
    angle = position[:, axis].float() * inverse
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(
    x: Float[Tensor, "T h d"], cos: Float32[Tensor, "T 1 f"], sin: Float32[Tensor, "T 1 f"]
) -> Float[Tensor, "T h d"]:
    """Turn each pair (j, j + d/2) of `x` by its row's angle; in float32, back in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
