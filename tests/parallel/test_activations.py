from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from oneflow_dist.config import ModelConfig
from oneflow_dist.model.axis import Axis
from oneflow_dist.model.trunk import Block, Sight, rotary_table
from oneflow_dist.parallel.activations import Mode, checkpoint_block
from oneflow_kernels.float8 import float8_linear
from tests.launching import Launcher

MODES = ("selective", "full")
ROWS, WIDTH, KV_WIDTH, MLP_WIDTH, HEADS = 192, 64, 16, 224, 8  # the proportions of Llama's 8B
CONFIG = ModelConfig(
    width=WIDTH,
    num_layers=1,
    num_attention_heads=HEADS,
    num_kv_heads=2,
    mlp_width=MLP_WIDTH,
    vocab_size=16,
    rope_theta=1e4,
    norm_eps=1e-5,
    tie_embeddings=True,
    rope_scaling=1.0,
)

DRAW = torch.zeros(4, dtype=torch.int64)


def make_block(mode: Mode, is_modulated: bool = False, is_float8: bool = False) -> Block:
    torch.manual_seed(0)
    block = Block(CONFIG, is_modulated)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    if is_float8:
        for layer in (*block.attention.children(), *block.mlp.children()):
            layer.product = float8_linear
    checkpoint_block(block, mode)
    return block


def inputs() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x, condition = (torch.randn(n, WIDTH, generator=generator).requires_grad_() for n in (ROWS, 3))
    row_piece = torch.randint(4, (ROWS,), generator=generator)
    cos, sin = rotary_table(torch.arange(ROWS).float()[:, None].expand(ROWS, 3), WIDTH // HEADS, 1e4, 1.0)
    return x, condition, row_piece, cos, sin, Sight(torch.tensor([0, 64, 128, ROWS], dtype=torch.int32), ROWS)


def output_and_gradients(block: Block) -> dict[str, Tensor]:
    x, condition, *rest = inputs()
    y = block(x, condition, *rest, DRAW)
    y.square().sum().backward()
    found = {name: parameter.grad for name, parameter in block.named_parameters()} | {"y": y.detach(), "dx": x.grad}
    return found | ({"d condition": condition.grad} if block.modulation is not None else {})


@pytest.mark.parametrize("is_float8", [False, True])
@pytest.mark.parametrize("is_modulated", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_outputs_and_gradients_are_bitwise_those_of_a_block_that_keeps_everything(
    mode: Mode, is_modulated: bool, is_float8: bool
) -> None:
    expected = output_and_gradients(make_block("none", is_modulated, is_float8))
    found = output_and_gradients(make_block(mode, is_modulated, is_float8))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.abs().max() > 0.0, name


@pytest.mark.parametrize("mode", MODES)
def test_names_of_parameters_and_of_the_state_stay(mode: Mode) -> None:
    plain, block = make_block("none"), make_block(mode)
    assert [name for name, _ in block.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(block.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in block.named_modules()] == [name for name, _ in plain.named_modules()]


def kept_values(block: Block) -> float:
    """How many float32 values of a row a block's forward pass leaves in memory for its backward pass."""
    arguments = inputs()
    block(*arguments, DRAW)  # what is allocated once and for all
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = block(*arguments, DRAW)
    num_bytes = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return num_bytes / 4 / ROWS - y.shape[1]


def test_full_keeps_the_input_alone_and_selective_what_it_says() -> None:
    """The caller holds the input, so it is not counted."""
    attention = WIDTH + HEADS  # its output, and one sum for each head
    assert kept_values(make_block("full")) < 0.1 * WIDTH
    expected = WIDTH + 2 * KV_WIDTH + attention + WIDTH  # query, key and value, attention, out
    assert expected <= kept_values(make_block("selective")) < 1.1 * expected
    assert kept_values(make_block("none")) > 3.0 * expected


def product_flops(block: Block) -> float:
    """FLOPs of all products of linear layers, for one value of all weights and one row."""
    arguments = inputs()
    with FlopCounterMode(display=False) as counter:
        block(*arguments, DRAW).sum().backward()
    return sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(op)) / (2 * ROWS)


def test_products_are_computed_again_as_often_as_they_say() -> None:
    attention, mlp = WIDTH * (2 * WIDTH + 2 * KV_WIDTH), 3 * WIDTH * MLP_WIDTH
    once = attention + mlp
    assert product_flops(make_block("none")) == 3 * once
    again = 2 * WIDTH * MLP_WIDTH  # gate and up
    assert product_flops(make_block("selective")) == 3 * once + again
    assert product_flops(make_block("full")) == 4 * once - WIDTH * MLP_WIDTH  # nothing needs what `down` gives
    assert again / once == pytest.approx(0.54, abs=0.01)


def exchanges_of_heads(mode: Mode) -> list[int]:
    """All-to-alls of a block on a context axis: of a forward pass, then with its backward pass."""
    rank, size = dist.get_rank(), dist.get_world_size()
    axis = Axis(rank=rank, size=size, group=dist.group.WORLD.group_name)
    torch.manual_seed(0)
    block = Block(CONFIG, False, context=axis)
    checkpoint_block(block, mode)
    x, condition, row_piece, cos, sin, sight = inputs()
    own = axis.local_slice(ROWS)
    counts = []
    with CommDebugMode() as counter:
        y = block(x[own], condition, row_piece, cos[own], sin[own], sight, DRAW)
        counts.append(counter.get_total_counts())
        y.square().sum().backward()
    return [*counts, counter.get_total_counts()]


@pytest.mark.parametrize(("mode", "expected"), [("none", [2, 4]), ("selective", [2, 4]), ("full", [2, 6])])
def test_what_crossed_a_context_axis_is_sent_again_by_full_alone(
    launcher: Launcher, mode: Mode, expected: list[int]
) -> None:
    assert launcher.call(2, exchanges_of_heads, mode) == [expected] * 2


def test_forward_passes_that_have_no_backward_pass_leave_the_next_one_alone() -> None:
    """As generation does between steps."""
    expected = output_and_gradients(make_block("selective"))
    block = make_block("selective")
    with torch.no_grad():
        block(*inputs(), DRAW)
    block(*inputs(), DRAW)
    found = output_and_gradients(block)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def compiled_steps(mode: Mode, is_compiled: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of three blocks in a row, and how many graphs were compiled."""
    from torch._dynamo.utils import counters

    blocks = [make_block(mode) for _ in range(3)]
    if is_compiled:
        for block in blocks:
            block.compile(fullgraph=True, backend="aot_eager")
    x, *rest = inputs()
    y = x
    for block in blocks:
        y = block(y, *rest, DRAW)
    y.square().mean().backward()
    found = {f"{n} {name}": p.grad for n, block in enumerate(blocks) for name, p in block.named_parameters()}
    return found | {"dx": x.grad}, counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def eager(launcher: Launcher) -> tuple[dict[str, Tensor], int]:
    (found,) = launcher.call(1, compiled_steps, "none", False)
    return found


@pytest.mark.parametrize("mode", ["none", *MODES])
def test_compiled_blocks_share_one_graph_and_have_the_same_gradients(
    mode: Mode, launcher: Launcher, eager: tuple[dict[str, Tensor], int]
) -> None:
    ((found, num_graphs),) = launcher.call(1, compiled_steps, mode, True)
    assert (eager[1], num_graphs) == (0, 1)
    for name, gradient in found.items():
        error = (gradient - eager[0][name]).norm() / eager[0][name].norm()
        assert error < 1e-5, f"{name}: {error:.1e}"
