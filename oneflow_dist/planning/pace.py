"""How long a step would take on one GPU: what it asks for, counted, by rates that were measured there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.model.flops import step_flops
from oneflow_dist.muon import make_optimizer
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.planning.counter import BLOCKS
from oneflow_dist.planning.events import Call
from oneflow_dist.planning.gpus import Gpu
from oneflow_dist.planning.rates import ATTENTION, Pricing, Rates
from oneflow_dist.planning.trace import eager, fake_model, pretend_ranks, record_step, without_values


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
    keys: float  # that a row meets in the mean
    model_flops: float
    num_parameters: int

    @property
    def seconds(self) -> float:
        """All parts; what is left between kernels is no part."""
        return sum(part.seconds for part in self.parts)


def count_step(config: Config, batches: Sequence[PackedBatch]) -> tuple[list[Call], int]:
    """The calls of an optimizer step over these packs on one GPU, found on fake tensors; and the parameters.

    Nothing of it looks at a value: a step that waited for one would end here with an error.
    """
    config = eager(config)
    with pretend_ranks(1), fake_model(config, make_mesh(config, 1, "cpu")) as (model, num_parameters, mode):
        fakes = [without_values(batch, mode) for batch in batches]
        optimizer = make_optimizer(model, config)
        for _ in range(2):  # in the first FSDP makes itself ready
            recorder, _ = record_step(model, optimizer, fakes, config)
    return recorder.calls, num_parameters


def pace_of(config: Config, batches: Sequence[PackedBatch], gpu: Gpu) -> Pace:
    """The time of a step by what is counted, at the rates of `Rates`; attention of the pairs that the packs have."""
    calls, num_parameters = count_step(config, batches)
    counts = sum((batch.counts for batch in batches), Counts.zeros())
    pricing = Pricing.of(config, Rates.of(gpu), counts.attention_pairs / counts.rows)
    groups: dict[str, list[Call]] = {"products of blocks": [], "attention": [], "rest of blocks": []}
    for call in calls:
        groups.setdefault(_line_of(call), []).append(call)
    parts = [_part(name, group, pricing) for name, group in groups.items()]
    flops = attention_flops(groups["attention"], counts, config) / len(batches)
    parts[1] = dataclasses.replace(parts[1], flops=flops, seconds=flops / pricing.rates.attention_of(pricing.keys))
    return Pace(
        parts=tuple(parts),
        packs=len(batches),
        keys=pricing.keys,
        model_flops=step_flops(counts, config),
        num_parameters=num_parameters,
    )


def attention_flops(calls: Sequence[Call], counts: Counts, config: Config) -> float:
    """Of so many calls, each over the pairs that all packs have: a forward one 4 each, a backward one 10."""
    passes = sum(10.0 if call.operation.endswith("backward") else 4.0 for call in calls)
    return passes * config.model.width * counts.attention_pairs


def _line_of(call: Call) -> str:
    """Of the table."""
    if call.part != BLOCKS:
        return call.part
    if call.operation.startswith(ATTENTION):
        return "attention"
    return "products of blocks" if call.flops else "rest of blocks"


def _part(name: str, calls: list[Call], pricing: Pricing) -> Part:
    share = pricing.share_of_bytes(calls[0]) if calls else 1.0
    return Part(
        name=name,
        calls=len(calls),
        num_bytes=share * sum(call.num_bytes for call in calls),
        flops=float(sum(call.flops for call in calls)),
        seconds=sum(pricing.seconds(call) for call in calls),
    )


def pace_text(pace: Pace, gpu: Gpu) -> str:
    """The table, a line a part; milliseconds and GB of a pack."""
    packs, flops = pace.packs, pace.model_flops / pace.packs
    rates = Rates.of(gpu)
    products, attention, memory = rates.products / 1e12, rates.attention_of(pace.keys) / 1e12, rates.memory / 1e12
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
