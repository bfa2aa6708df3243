from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

from oneflow_dist.config import Config, ModelConfig
from oneflow_dist.model.kv_cache import KVCache
from oneflow_dist.model.trunk import MLP, Attention, Block, Sight, rotary_frequency, rotary_table, rotate
from tests.launching import Launcher

CU_SEQLENS = torch.tensor([0, 4, 9], dtype=torch.int32)
SIGHT = Sight(CU_SEQLENS, 5)
DRAW = torch.zeros(4, dtype=torch.int64)
ROWS = 9


@pytest.fixture
def model_config(config: Config) -> ModelConfig:
    return config.model


def text_positions(num_rows: int) -> Tensor:
    return torch.arange(num_rows, dtype=torch.float32)[:, None].expand(num_rows, 3).contiguous()


def llama_rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """The rotary embedding of Llama: pairs (j, j + d/2) turn by position * theta ** (-2 j / d)."""
    half = x.shape[-1] // 2
    angle = position[:, None].double() * theta ** (-torch.arange(half).double() / half)
    turned = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1).double()) * torch.polar(
        torch.ones_like(angle), angle
    ).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], -1)


def test_text_rows_turn_as_in_llama() -> None:
    x = torch.randn(ROWS, 2, 12)
    cos, sin = rotary_table(text_positions(ROWS), 12, 10000.0, 1.0)
    expected = llama_rotate(x, torch.arange(ROWS), 10000.0)
    torch.testing.assert_close(rotate(x, cos, sin).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scaling", [1.0, 8.0, 32.0])
def test_frequencies_are_those_of_transformers_to_the_bit(scaling: float) -> None:
    """Of Llama 3, 3.1 and 3.2."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    if scaling > 1.0:
        rope |= {"rope_type": "llama3", "factor": scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope, max_position_embeddings=131072)
    expected = LlamaRotaryEmbedding(config)
    frequency = rotary_frequency(128, 500000.0, scaling, torch.device("cpu"))
    assert torch.equal(frequency, expected.inv_freq)
    position = torch.tensor([0.0, 1.0, 2047.0, 2048.0, 8191.0, 8192.0, 70000.0, 131071.0])
    cos, sin = rotary_table(position[:, None].expand(8, 3).contiguous(), 128, 500000.0, scaling)
    their_cos, their_sin = expected(torch.zeros(1), position[None])
    assert torch.equal(cos[:, 0], their_cos[0, :, :64])
    assert torch.equal(sin[:, 0], their_sin[0, :, :64])


def test_scaling_leaves_fast_pairs_and_stretches_slow_ones() -> None:
    plain, stretched = (rotary_frequency(128, 500000.0, scaling, torch.device("cpu")) for scaling in (1.0, 8.0))
    wavelength = 2 * torch.pi / plain
    ratio = plain / stretched
    assert (ratio[wavelength < 2048] == 1.0).all()
    assert (ratio[wavelength > 8192] == 8.0).all()
    between = ratio[(wavelength > 2048) & (wavelength < 8192)]
    assert len(between) > 3
    assert ((between > 1.0) & (between < 8.0)).all()


def test_pairs_turn_with_the_three_axes_in_turn() -> None:
    """Each axis has fast and slow frequencies."""
    position = torch.eye(3)
    _, sin = rotary_table(position, 12, 100.0, 1.0)
    assert (sin[:, 0] != 0.0).int().tolist() == [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]


def test_scores_depend_on_differences_of_positions_alone() -> None:
    query, key = torch.randn(2, ROWS, 1, 12).double().unbind()
    position = torch.randint(20, (ROWS, 3)).float()

    def scores(shift: Tensor) -> Tensor:
        cos, sin = rotary_table(position + shift, 12, 10000.0, 1.0)
        return torch.einsum("thd,uhd->tu", rotate(query, cos, sin), rotate(key, cos, sin))

    nowhere, somewhere = torch.zeros(3), torch.tensor([5.0, 11.0, 2.0])
    torch.testing.assert_close(scores(nowhere), scores(somewhere), atol=1e-4, rtol=1e-4)


def test_rotation_keeps_lengths_and_dtype() -> None:
    x = torch.randn(ROWS, 2, 8).bfloat16()
    cos, sin = rotary_table(text_positions(ROWS), 8, 10000.0, 1.0)
    turned = rotate(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), atol=0.05, rtol=0.01)


def test_row_at_position_zero_is_not_turned() -> None:
    x = torch.randn(1, 2, 8)
    cos, sin = rotary_table(text_positions(1), 8, 10000.0, 1.0)
    assert torch.equal(rotate(x, cos, sin), x)


def run_attention(attention: Attention, x: Tensor, sight: Sight = SIGHT) -> Tensor:
    cos, sin = rotary_table(text_positions(ROWS), attention.head_width, 10000.0, 1.0)
    return attention(x, cos, sin, sight, DRAW)


def test_every_row_sees_all_rows_of_its_sequence_and_no_other(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    attention, x = Attention(model_config), torch.randn(ROWS, model_config.width, requires_grad=True)
    for row in range(ROWS):
        (grad,) = torch.autograd.grad(run_attention(attention, x)[row].sum(), x)
        own = range(4) if row < 4 else range(4, 9)
        assert (grad != 0.0).any(dim=1).nonzero().flatten().tolist() == list(own)


def test_a_causal_row_sees_itself_and_what_stands_before_it(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    attention = Attention(model_config)
    x = torch.randn(ROWS, model_config.width, requires_grad=True)
    for row in range(ROWS):
        (grad,) = torch.autograd.grad(run_attention(attention, x, SIGHT._replace(is_causal=True))[row].sum(), x)
        seen = range(row + 1) if row < 4 else range(4, row + 1)
        assert (grad != 0.0).any(dim=1).nonzero().flatten().tolist() == list(seen)


def test_a_row_sees_its_sequence_up_to_where_it_may(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    attention, x = Attention(model_config), torch.randn(ROWS, model_config.width, requires_grad=True)
    ends = [1, 3, 3, 4, 6, 6, 9, 9, 9]
    sight = Sight(CU_SEQLENS, 5, torch.tensor(ends, dtype=torch.int32))
    for row, end in enumerate(ends):
        (grad,) = torch.autograd.grad(run_attention(attention, x, sight)[row].sum(), x)
        seen = range(0 if row < 4 else 4, end)
        assert (grad != 0.0).any(dim=1).nonzero().flatten().tolist() == list(seen)


def pass_by_pass(config: ModelConfig, is_compiled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of sequences of 4 and 5 rows, whose first 2 and 3 see themselves alone: these, then the others; and all at once.

    Returns:
        Rows of both passes, those of the one, and what the second has left.
    """
    torch.manual_seed(0)
    block, x = Block(config, is_modulated=False), torch.randn(ROWS, config.width)
    if is_compiled:
        block.compile(fullgraph=True, backend="aot_eager")
    cos, sin = rotary_table(text_positions(ROWS), block.attention.head_width, 10000.0, 1.0)

    def run(rows: list[int], lengths: list[int], kept: KVCache | None, row_end: Tensor | None = None) -> Tensor:
        sight = Sight(torch.tensor([0, *lengths]).cumsum(0).int(), 5, row_end, kept)
        return block(x[rows], torch.zeros(2, config.width), ROW_PIECE, cos[rows], sin[rows], sight, DRAW)

    with torch.no_grad():
        whole = run([*range(ROWS)], [4, 5], None, torch.tensor([2, 2, 4, 4, 7, 7, 7, 9, 9]).int())
        first = KVCache(None, torch.arange(5), torch.tensor([0, 2, 5]).int())
        in_front = run([0, 1, 4, 5, 6], [2, 3], first)
        second = KVCache(first.new, torch.tensor([0, 1, 5, 6, 2, 3, 4, 7, 8]), CU_SEQLENS)
        behind = run([2, 3, 7, 8], [2, 2], second)
    assert second.new is not None
    return torch.cat([in_front, behind]), whole[[0, 1, 4, 5, 6, 2, 3, 7, 8]], second.new


@pytest.mark.parametrize("is_compiled", [False, True])
def test_rows_that_are_not_computed_again_are_seen_by_what_they_left(
    model_config: ModelConfig, launcher: Launcher, is_compiled: bool
) -> None:
    ((found, expected, left),) = launcher.call(1, pass_by_pass, model_config, is_compiled)
    torch.testing.assert_close(found, expected)
    assert left.shape == (2, 4, model_config.num_kv_heads, model_config.width // model_config.num_attention_heads)


def test_grouped_queries_equal_repeated_keys_and_values(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    grouped = Attention(replace(model_config, num_kv_heads=2))
    full = Attention(replace(model_config, num_kv_heads=4))
    query, key, value = grouped.qkv.weight.unflatten(0, (2, 4, grouped.head_width)).split((2, 1, 1), dim=1)
    per_head = [query.unflatten(1, (2, 1)), *(x[:, :, None].expand(-1, 2, -1, -1, -1) for x in (key, value))]
    whole = torch.cat([part.flatten(0, 1) for part in per_head], dim=1).flatten(0, 2)  # each head with its own
    full.load_state_dict(grouped.state_dict() | {"qkv.weight": whole})
    x = torch.randn(ROWS, model_config.width)
    torch.testing.assert_close(run_attention(grouped, x), run_attention(full, x))


def test_mlp_is_a_gated_product(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    mlp, x = MLP(model_config), torch.randn(3, model_config.width)
    gate, up = (x @ part.flatten(0, 1).T for part in mlp.gate_up.weight.unflatten(0, (-1, 2, mlp.part_width)).unbind(1))
    expected = (gate * torch.sigmoid(gate) * up) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x, DRAW), expected)


def run_block(block: Block, x: Tensor, condition: Tensor, row_piece: Tensor, sight: Sight = SIGHT) -> Tensor:
    cos, sin = rotary_table(text_positions(ROWS), block.attention.head_width, 10000.0, 1.0)
    return block(x, condition, row_piece, cos, sin, sight, DRAW)


ROW_PIECE = torch.tensor([2, 0, 0, 2, 2, 1, 1, 1, 2])  # of two pieces; 2: text


def test_a_block_adds_attention_then_mlp_to_the_stream(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    block, x = Block(model_config, is_modulated=False), torch.randn(ROWS, model_config.width)
    norm = (model_config.width,)
    middle = x + run_attention(block.attention, F.rms_norm(x, norm, eps=model_config.norm_eps))
    expected = middle + block.mlp(F.rms_norm(middle, norm, eps=model_config.norm_eps), DRAW)
    torch.testing.assert_close(run_block(block, x, torch.zeros(2, model_config.width), ROW_PIECE), expected)


def test_an_unmodulated_block_knows_no_time_of_a_piece(model_config: ModelConfig) -> None:
    block, x = Block(model_config, is_modulated=False), torch.randn(ROWS, model_config.width)
    early, late = torch.randn(2, 2, model_config.width)
    assert torch.equal(run_block(block, x, early, ROW_PIECE), run_block(block, x, late, ROW_PIECE))


def modulated_block(model_config: ModelConfig) -> Block:
    torch.manual_seed(0)
    block = Block(model_config, is_modulated=True)
    assert block.modulation is not None
    for parameter in block.modulation.parameters():
        torch.nn.init.zeros_(parameter)
    return block


def test_modulation_at_zero_leaves_rows_of_pieces_as_they_are_and_text_rows_as_in_a_plain_block(
    model_config: ModelConfig,
) -> None:
    block, x = modulated_block(model_config), torch.randn(ROWS, model_config.width)
    out = run_block(block, x, torch.randn(2, model_config.width), ROW_PIECE)
    is_piece = ROW_PIECE < 2
    assert torch.equal(out[is_piece], x[is_piece])
    assert not torch.isclose(out[~is_piece], x[~is_piece]).all(dim=1).any()
    only_text = torch.full((ROWS,), 2)
    plain = Block(model_config, is_modulated=False)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "modulation" not in k})
    torch.testing.assert_close(
        run_block(block, x, torch.randn(2, model_config.width), only_text),
        run_block(plain, x, torch.randn(2, model_config.width), only_text),
    )


def test_modulation_reaches_the_rows_of_its_own_piece_alone(model_config: ModelConfig) -> None:
    """Apart from attention: with its output off, the time of piece 1 changes the rows of piece 1."""
    block, x = modulated_block(model_config), torch.randn(ROWS, model_config.width)
    assert block.modulation is not None
    torch.nn.init.normal_(block.modulation.linear.weight)
    torch.nn.init.zeros_(block.attention.out.weight)
    early = torch.randn(2, model_config.width)
    late = early.clone()
    late[1] += 1.0
    changed = (run_block(block, x, early, ROW_PIECE) != run_block(block, x, late, ROW_PIECE)).any(dim=1)
    assert changed.tolist() == (ROW_PIECE == 1).tolist()
