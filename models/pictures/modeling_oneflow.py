"""OneFlow (arXiv:2510.03506): the network, under Llama's names where it is a Llama, and its config.

It needs torch, numpy and transformers, and comes with the weights:

    from transformers import AutoModel, AutoTokenizer
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    document = model.write(tokenizer, "a red apple<|image|>", seed=0)

Written from oneflow_dist, whose generation it repeats to rounding, one document at a time. Licence: Apache-2.0.
"""

# Shapes: n tokens, p patches of E elements, T rows, D width, h heads, d head width.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .writing_oneflow import Piece, Writing


class OneFlowConfig(PretrainedConfig):
    """The shape of a model, and how it writes; every key is in config.json."""

    model_type = "oneflow"


class TimeEmbedding(nn.Module):
    """A time in [0, 1]: sinusoids, of a text also those of the logarithm of what is left, then two layers."""

    def __init__(self, width: int, is_of_text: bool = False):
        super().__init__()
        self.is_of_text = is_of_text
        self.hidden, self.out = nn.Linear(512 if is_of_text else 256, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        values = sinusoids(time)
        if self.is_of_text:
            values = torch.cat([values, sinusoids(log_time_left(time) / math.log(1e-6))], dim=-1)
        return self.out(F.silu(self.hidden(values.to(self.hidden.weight.dtype))))


def sinusoids(time: Tensor) -> Tensor:
    """128 cosines and sines, from 1 to 1000 radians."""
    steps = torch.arange(128, device=time.device) / 127
    angle = time.float()[:, None] * torch.exp(math.log(1000.0) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def log_time_left(time: Tensor) -> Tensor:
    """log(1 - t), of a time in float32."""
    return (1.0 - time.float()).clamp(min=1e-6).log()


class Modulation(nn.Module):
    """Shifts, scales and gates from a condition (AdaLN-Zero)."""

    def __init__(self, width: int, num_parts: int):
        super().__init__()
        self.num_parts, self.linear = num_parts, nn.Linear(width, num_parts * width)

    def forward(self, condition: Tensor) -> list[Tensor]:
        parts = self.linear(F.silu(condition)).chunk(self.num_parts, dim=-1)
        return [1.0 + part if i % 3 == 1 else part for i, part in enumerate(parts)]


class TwoLayers(nn.Module):
    """A linear layer, or two with a hidden width between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.first = nn.Linear(inputs, hidden) if hidden else None
        self.last = nn.Linear(hidden or inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x if self.first is None else F.silu(self.first(x)))


class Adapter(nn.Module):
    """Between the patches of a modality and rows of the trunk."""

    def __init__(self, config: OneFlowConfig, modality: dict[str, Any]):
        super().__init__()
        width, elements = config.hidden_size, modality["channels"] * math.prod(modality["patch"])
        self.is_added = modality["time_conditioning"] == "added"
        self.time = TimeEmbedding(width)
        self.text_modulation = Modulation(width, 2) if config.time_conditioning == "adaln" else None
        self.embed = TwoLayers(elements, modality["adapter_width"], width)
        self.norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.modulation = None if self.is_added else Modulation(width, 2)
        self.velocity = TwoLayers(width, modality["adapter_width"], elements)

    def decode(self, rows: Tensor, time: Tensor, text_time: Tensor | None) -> Tensor:
        """Velocity [p, E]; `time` [p, D] and `text_time` [1, D] are embedded."""
        hidden = self.norm(rows)
        if self.text_modulation is not None and text_time is not None:
            shift, scale = self.text_modulation(text_time)
            hidden = hidden * scale + shift
        if self.modulation is not None:
            shift, scale = self.modulation(time)
            hidden = hidden * scale + shift
        return self.velocity(hidden).float()


class Heads(nn.Module):
    """Of each slot: is a token missing, how many; which, the unembedding says."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.modulation = Modulation(config.hidden_size, 2) if config.time_conditioning == "adaln" else None
        self.zero = nn.Linear(config.hidden_size, 1 if config.time_conditioning == "none" else 3)
        self.rate = nn.Linear(config.hidden_size, 1)


class Attention(nn.Module):
    """Grouped-query attention, each row seeing the keys that `mask` lets it see."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.head_width = config.hidden_size // config.num_attention_heads
        key_width = config.num_key_value_heads * self.head_width
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, key_width, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, norms: Any, mask: Tensor | None) -> Tensor:
        query, key, value = (f(x).unflatten(-1, (-1, self.head_width)) for f in (self.q_proj, self.k_proj, self.v_proj))
        if norms is not None:
            query, key = norms.query_norm(query), norms.key_norm(key)
        query, key = (rotate(heads, cos, sin).transpose(0, 1)[None] for heads in (query, key))
        out = F.scaled_dot_product_attention(query, key, value.transpose(0, 1)[None], mask, enable_gqa=True)
        return self.o_proj(out[0].transpose(0, 1).flatten(1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (j, j + d/2) of [T, h, d] by its row's angle."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP under the names of Llama; what Llama has not comes as `own`."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2)
        )
        self.self_attn, self.mlp = Attention(config), MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, own: OwnBlock, parts: list[Tensor]
    ) -> Tensor:
        norms = own.attention
        if not parts:
            x = x + self.self_attn(self.input_layernorm(x), cos, sin, norms, mask)
            return x + self.mlp(self.post_attention_layernorm(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.self_attn(self.input_layernorm(x) * scale + shift, cos, sin, norms, mask)
        return x + mlp_gate * self.mlp(self.post_attention_layernorm(x) * mlp_scale + mlp_shift)


class Trunk(nn.Module):
    """What a Llama has."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Rest(nn.Module):
    """What it has not."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        self.adapters: Any = nn.ModuleDict({name: Adapter(config, one) for name, one in config.modalities.items()})
        has_time = config.time_conditioning != "none"
        self.text_time = TimeEmbedding(config.hidden_size, is_of_text=True) if has_time else None
        self.heads = Heads(config)
        is_modulated = any(one["time_conditioning"] == "adaln" for one in config.modalities.values())
        self.blocks: Any = nn.ModuleList(OwnBlock(config, is_modulated) for _ in range(config.num_hidden_layers))


class OwnBlock(nn.Module):
    """Of a layer: how times modulate it, and the norms of queries and keys."""

    def __init__(self, config: OneFlowConfig, is_modulated: bool):
        super().__init__()
        self.modulation = Modulation(config.hidden_size, 6) if is_modulated else None
        self.attention = HeadNorms(config) if config.qk_norm else None


class HeadNorms(nn.Module):
    """Queries and keys are normed before they meet."""

    def __init__(self, config: OneFlowConfig):
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        self.query_norm, self.key_norm = (nn.RMSNorm(width, eps=config.rms_norm_eps) for _ in range(2))


class OneFlowModel(Writing, PreTrainedModel):
    """The network; how it writes documents is in `Writing`."""

    config_class = OneFlowConfig

    def __init__(self, config: OneFlowConfig):
        super().__init__(config)
        self.model, self.oneflow = Trunk(config), Rest(config)
        self.autoencoders: dict[str, Any] = {}
        width = config.hidden_size
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def forward(self, tokens: np.ndarray, pieces: list[Piece], text_time: float, front: int) -> tuple[Any, ...]:
        """One pass over one document.

        Returns:
            zero logit [n], log rate [n], hidden [n, D] of the slots; velocity [p, E] of each piece.
        """
        token_row, patch_rows, position, num_rows = lay_rows(tokens, pieces, front, self.config)
        mask = self._mask(token_row, front, num_rows)
        weight = self.model.embed_tokens.weight
        at = {"device": weight.device}
        time = torch.tensor([min(1.0, text_time)], **at)
        told = self.oneflow.text_time(time) if self.oneflow.text_time is not None else None
        rows = torch.zeros(num_rows, weight.shape[1], dtype=weight.dtype, **at)
        embedded = self.model.embed_tokens(torch.from_numpy(tokens).to(**at))
        if self.config.time_conditioning == "token":
            assert told is not None
            embedded[0] += told[0]
        rows[torch.from_numpy(token_row).to(**at)] = embedded
        times = []
        for piece, place in zip(pieces, patch_rows, strict=True):
            adapter = self.oneflow.adapters[piece.kind]
            times.append(adapter.time(torch.tensor([min(1.0, piece.time)], dtype=torch.float32, **at)))
            entering = adapter.embed(torch.from_numpy(piece.patches).to(weight))
            rows[place] = entering + times[-1] if adapter.is_added else entering
        cos, sin = rotary_table(torch.from_numpy(position).to(**at), self.config)
        for layer, own in zip(self.model.layers, self.oneflow.blocks, strict=True):
            parts = self._modulate(own, rows, pieces, patch_rows, times)
            rows = layer(rows, cos, sin, mask, own, parts)
        hidden = self.model.norm(rows[torch.from_numpy(token_row).to(**at)])
        heads = self.oneflow.heads
        if heads.modulation is not None:
            shift, scale = heads.modulation(told)
            hidden = hidden * scale + shift
        zero = heads.zero(hidden).float()
        if self.config.time_conditioning == "none":
            zero = zero.squeeze(-1)
        else:
            zero = -(torch.arange(3, **at) * log_time_left(time) - zero).logsumexp(-1)
        velocity = [
            self.oneflow.adapters[piece.kind].decode(rows[place], of, told).cpu().numpy()
            for piece, place, of in zip(pieces, patch_rows, times, strict=True)
        ]
        return zero, heads.rate(hidden).squeeze(-1).float(), hidden, velocity

    def _mask(self, token_row: np.ndarray, front: int, num_rows: int) -> Tensor | None:
        """Where prompts see the prompt alone: which keys [T, T] a row sees."""
        if self.config.prompt_sees == "all":
            return None
        end = int(token_row[front - 1])
        key, row = torch.arange(num_rows, device=self.device), torch.arange(num_rows, device=self.device)[:, None]
        return key < torch.where(row < end, end, num_rows)

    def _modulate(
        self, own: Any, rows: Tensor, pieces: list[Piece], patch_rows: list[np.ndarray], times: list[Tensor]
    ) -> list[Tensor]:
        """Six parts [T, D] by which a block is modulated on the rows of pieces; none where no block is."""
        if own.modulation is None:
            return []
        parts = [torch.full_like(rows, neutral) for neutral in (0.0, 1.0, 1.0) * 2]
        for piece, place, time in zip(pieces, patch_rows, times, strict=True):
            if self.config.modalities[piece.kind]["time_conditioning"] == "adaln":
                for part, value in zip(parts, own.modulation(time), strict=True):
                    part[place] = value
        return parts

    def logits(self, hidden: Tensor) -> Tensor:
        """Of all tokens of the vocabulary, for slots that fire."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight).float()


def lay_rows(
    tokens: np.ndarray, pieces: list[Piece], front: int, config: OneFlowConfig
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, int]:
    """Row of each token, rows of each piece's patches, position [T, 3] of each row, and T.

    A token stands at (p, p, p); patch (t, r, c) of a piece whose token stands at p at (p+1+t, p+1+r, p+1+c), in
    strides; what follows it at p + 1 + its longest side.
    """
    rows_of_token, steps_of_token = np.ones((2, len(tokens)), dtype=np.int64)
    strides = []
    for piece in pieces:
        most = config.modalities[piece.kind]["squeezed_to"]
        strides.append(min(1.0, most / max(piece.grid)) if most else 1.0)
        rows_of_token[piece.token] += len(piece.patches)
        steps_of_token[piece.token] += math.ceil(max(piece.grid) * strides[-1] - 1e-9)
    token_row = np.cumsum(rows_of_token) - rows_of_token
    token_position = np.cumsum(steps_of_token) - steps_of_token
    patch_rows = []
    for piece in pieces:
        first = token_row[piece.token] + 1
        if config.prompt_sees != "all" and piece.token == front - 1:  # the slot behind a prompt comes after its patches
            first -= 1
            token_row[piece.token] += len(piece.patches)
        patch_rows.append(first + np.arange(len(piece.patches)))
    num_rows = int(rows_of_token.sum())
    position = np.zeros((num_rows, 3), dtype=np.float32)
    position[token_row] = token_position[:, None]
    for piece, place, stride in zip(pieces, patch_rows, strides, strict=True):
        t, rest = np.divmod(np.arange(len(place)), piece.grid[1] * piece.grid[2])
        within = np.stack([t, *np.divmod(rest, piece.grid[2])], axis=1)
        position[place] = token_position[piece.token] + 1 + within * stride
    return token_row, patch_rows, position, num_rows


def rotary_table(position: Tensor, config: OneFlowConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 1, d/2]: frequency j turns with axis j mod 3 of the position."""
    width = config.hidden_size // config.num_attention_heads
    frequency = 1.0 / config.theta ** (torch.arange(0, width, 2, device=position.device).float() / width)
    if config.rope_factor != 1.0:
        turns = 8192 / (2 * math.pi / frequency)
        smooth = ((turns - 1.0) / 3.0).clamp(0.0, 1.0)
        frequency = (1.0 - smooth) * frequency / config.rope_factor + smooth * frequency
    angle = position[:, torch.arange(width // 2, device=position.device) % 3] * frequency
    return angle.cos()[:, None], angle.sin()[:, None]
