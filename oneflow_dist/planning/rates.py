"""How long a device takes for what it is asked: few rates, each measured."""

from __future__ import annotations

from dataclasses import dataclass

from oneflow_dist.config import Config
from oneflow_dist.planning.counter import BLOCKS
from oneflow_dist.planning.events import Call
from oneflow_dist.planning.gpus import Gpu

ATTENTION = ("interval_attention", "packed_attention", "_varlen_attn", "flash_attention")
FLOAT8 = "_scaled_mm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one GPU reaches."""

    products: float  # FLOP/s of matrix products in bfloat16, in a step
    float8: float  # the same of those in float8
    float32: float  # and in float32
    attention: float  # FLOP/s of attention, forward and backward together, of endless documents
    more_keys: float  # attention takes as long as if every row met so many keys more than it does: tiles, launches
    memory: float  # bytes per second of kernels that read and write
    launch: float  # seconds that a small kernel takes at least
    compiled: float  # of the bytes that a block reads and writes call by call, what it does when it is compiled
    eager: float  # and when it is not, as GPUs have kernels where CPUs have several calls
    paced: float  # of a step's time the share that is left between kernels: waits for launches, clocks that fall

    def attention_of(self, keys: float) -> float:
        """FLOP/s of attention where a row meets so many keys."""
        return self.attention * keys / (keys + self.more_keys)

    @classmethod
    def of(cls, gpu: Gpu) -> Rates:
        """Those of an H100 SXM, and of other GPUs in proportion to their data sheets.

        products    kernels of a step of 1B (docs/gpu.md): 95.7 TFLOP in 129.8 ms
        float8      that step took 25 ms less in float8 (docs/results/h100/first-report.md), casts counted
        float32     a large product (docs/results/h100/first-report.md)
        attention   documents of 330 rows 172 TFLOP/s in that step, one of 16,384 rows 328 (second-report.md): two
                    numbers from two. They give 302, and causal 277, at 7 documents of some 3,000 rows, where 290 to
                    301, and 277, were measured
        memory      what reads and writes most in that step; a copy reaches 3.0
        compiled    from the profile of that step
        eager       it took 35 ms more (second-report.md)
        paced       four packs a step took 197.3 ms a pack where all calls together are counted as 186.8 (docs/gpu.md)
        """
        compute, memory = gpu.flops_per_second / 989e12, gpu.bandwidth_bytes_per_second / 3.35e12
        return cls(
            products=736e12 * compute,
            float8=1290e12 * compute,
            float32=51e12 * compute,
            attention=334e12 * compute,
            more_keys=311.0,
            memory=2.65e12 * memory,
            launch=3e-6,
            compiled=0.195,
            eager=0.48,
            paced=0.056,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Seconds of calls in the run of a config."""

    rates: Rates
    products: float  # FLOP/s of those of the run's precision
    keys: float  # that a row meets, in the mean
    is_compiled: bool
    average_every: int  # steps

    @classmethod
    def of(cls, config: Config, rates: Rates, keys: float) -> Pricing:
        """On a GPU of these rates."""
        return cls(
            rates=rates,
            products=rates.float32 if config.train.precision == "fp32" else rates.products,
            keys=keys,
            is_compiled=config.train.compile,
            average_every=config.optim.ema_every_steps,
        )

    def seconds(self, call: Call) -> float:
        """Of one call.

        products        the longer of FLOPs / rate and bytes / memory
        attention       FLOPs * (keys + more_keys) / keys / rate
        rest of a block share of its bytes / memory: what is compiled is written once
        all else        bytes / memory, and at least a launch; the moving average in some steps only
        """
        rates, moving = self.rates, self.share_of_bytes(call) * call.num_bytes / self.rates.memory
        if call.operation.startswith(ATTENTION):
            return call.flops / rates.attention_of(self.keys)
        if call.flops:
            return max(call.flops / (rates.float8 if call.operation == FLOAT8 else self.products), moving)
        return moving if call.part == BLOCKS else max(moving, rates.launch / self._every(call))

    def share_of_bytes(self, call: Call) -> float:
        """Of what a call would read and write by itself, in every step."""
        if call.part == BLOCKS and not call.flops:
            return self.rates.compiled if self.is_compiled else self.rates.eager
        return 1.0 / self._every(call)

    def _every(self, call: Call) -> int:
        return self.average_every if call.part == "moving average" else 1
