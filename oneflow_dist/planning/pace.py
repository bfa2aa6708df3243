"""How long a step would take on one GPU: what it asks for, counted, by rates that were measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.model.flops import step_flops
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.planning.counter import BLOCKS, Call, CallCounter
from oneflow_dist.planning.gpus import Gpu
from oneflow_dist.planning.trace import eager, fake_model, pretend_ranks, without_values
from oneflow_dist.training import agree, compute_gradients, update_weights

ATTENTION = ("interval_attention", "packed_attention", "_varlen_attn", "flash_attention")
PRODUCTS = ("mm", "addmm", "product_")
# What the kernels of a compiled block read and write beside products and attention, forward and backward, for each row:
# so many elements in widths of the trunk (norms, residuals, rotation), and so many in widths of the MLP (SwiGLU). From
# their times in a profile on an H100 (docs/gpu.md) at the rate of memory below: fitted there, not counted.
WIDTHS_A_ROW, MLP_WIDTHS_A_ROW = 22.0, 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one GPU reaches, and where that is from."""

    products: float  # FLOP/s of matrix products in bfloat16, in a step
    attention: float  # FLOP/s of attention, forward and backward together, of documents of some 330 rows
    memory: float  # bytes per second of kernels that read and write
    launch: float  # seconds that a small kernel takes at least

    @classmethod
    def of(cls, gpu: Gpu) -> Rates:
        """Those of an H100 SXM (docs/gpu.md), and of other GPUs in proportion to their data sheets."""
        compute, memory = gpu.flops_per_second / 989e12, gpu.bandwidth_bytes_per_second / 3.35e12
        return cls(products=736e12 * compute, attention=172e12 * compute, memory=2.65e12 * memory, launch=3e-6)


@dataclass(frozen=True, slots=True)
class Part:
    """A line of the table."""

    name: str
    calls: int
    num_bytes: float
    flops: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A step, part by part."""

    parts: tuple[Part, ...]
    packs: int
    model_flops: float
    num_parameters: int

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def count_step(config: Config, batches: Sequence[PackedBatch]) -> tuple[list[Call], int]:
    """The calls of an optimizer step over these packs on one GPU, found on fake tensors; and the parameters.

    Nothing of it looks at a value: a step that waited for one would end here with an error.
    """
    config = eager(config)
    with pretend_ranks(1), fake_model(config, make_mesh(config, 1, "cpu")) as (model, num_parameters, mode):
        optimizer, ema = AdamW(model, config.optim), MovingAverage(model, config.optim.ema_decay)
        fakes = [without_values(batch, mode) for batch in batches]
        with unset_fake_temporarily():
            counts, _ = agree(list(batches))
        for _ in range(2):  # in the first FSDP makes itself ready
            with CallCounter(model.blocks) as counter:
                _, sums = compute_gradients(model, fakes, counts, config)
                update_weights(model, optimizer, ema, sums, torch.zeros_like(sums[-1]), 1, config)
    return counter.calls, num_parameters


def pace_of(config: Config, batches: Sequence[PackedBatch], rates: Rates) -> Pace:
    """The time of a step by what is counted.

    products            FLOPs / rate
    attention           FLOPs of the pairs that the packs have / rate
    rest of a block     rows * (22 widths + 9 MLP widths) * 2 bytes / memory: compiled, what is written once
    all else            bytes / memory, and at least a launch for each call
    moving average      its bytes / optim.ema_every_steps
    """
    calls, num_parameters = count_step(config, batches)
    counts = sum((batch.counts for batch in batches), Counts.zeros())
    model, parts = config.model, []
    in_blocks = [call for call in calls if call.part == BLOCKS]
    products = [call for call in in_blocks if call.operation in PRODUCTS]
    flops = float(sum(call.flops for call in products))
    parts.append(Part("products of blocks", len(products), _bytes(products), flops, flops / rates.products))
    attention = [call for call in in_blocks if call.operation.startswith(ATTENTION)]
    flops = 14.0 * model.width * model.num_layers * counts.attention_pairs
    parts.append(Part("attention", 4 * len(attention) // 2, _bytes(attention), flops, flops / rates.attention))
    moved = 2.0 * len(batches) * config.data.rows_per_pack * model.num_layers
    moved *= WIDTHS_A_ROW * model.width + MLP_WIDTHS_A_ROW * model.mlp_width
    parts.append(Part("rest of blocks", 0, moved, 0.0, moved / rates.memory))
    for name in dict.fromkeys(call.part for call in calls if call.part != BLOCKS):
        parts.append(_part(name, [call for call in calls if call.part == name], config, rates))
    return Pace(
        parts=tuple(parts), packs=len(batches), model_flops=step_flops(counts, config), num_parameters=num_parameters
    )


def _part(name: str, calls: list[Call], config: Config, rates: Rates) -> Part:
    share = 1.0 / config.optim.ema_every_steps if name == "moving average" else 1.0
    flops = sum(call.flops for call in calls if call.operation in PRODUCTS)
    moving = [call for call in calls if call.operation not in PRODUCTS]
    seconds = flops / rates.products + sum(max(call.num_bytes / rates.memory, rates.launch) for call in moving)
    return Part(name, len(calls), share * _bytes(calls), float(flops), share * seconds)


def _bytes(calls: list[Call]) -> float:
    return float(sum(call.num_bytes for call in calls))


def pace_text(pace: Pace, gpu: Gpu, rates: Rates) -> str:
    """The table, a line a part; milliseconds and GB of a pack."""
    packs, flops = pace.packs, pace.model_flops / pace.packs
    products, attention, memory = rates.products / 1e12, rates.attention / 1e12, rates.memory / 1e12
    launch = 1e6 * rates.launch
    lines = [
        f"a step of {packs} pack{'s' * (packs > 1)} on one {gpu.name}, by counts and measured rates; per pack",
        f"products {products:.0f} TFLOP/s, attention {attention:.0f}, memory {memory:.2f} TB/s; {launch:.0f} us a call",
        f"{'':<22}{'calls':>8}{'GB':>9}{'TFLOP':>9}{'ms':>9}",
    ]
    for part in pace.parts:
        calls = f"{part.calls / packs:8.0f}" if part.calls else f"{'':8}"
        lines.append(
            f"  {part.name:<20}{calls}{part.num_bytes / packs / 1e9:9.2f}{part.flops / packs / 1e12:9.2f}"
            f"{1e3 * part.seconds / packs:9.2f}"
        )
    seconds = pace.seconds / packs
    lines.append(f"  {'sum':<20}{'':26}{1e3 * seconds:9.2f}")
    lines.append(
        f"MFU {flops / seconds / gpu.flops_per_second:.1%}: {flops / 1e12:.1f} TFLOP of the model a pack; host waits 0"
    )
    return "\n".join(lines)
