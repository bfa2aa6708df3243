"""How long a traced step would take on a cluster, and whether it fits."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from oneflow_dist.config import Config
from oneflow_dist.data.loader import idle_share
from oneflow_dist.model.flops import training_flops
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.events import Stretch
from oneflow_dist.planning.rates import Pricing, Rates
from oneflow_dist.planning.timeline import Timeline, lay_out
from oneflow_dist.planning.trace import Trace, full_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a step is expected to take; seconds, and bytes of one rank."""

    compute_seconds: float
    paced_seconds: float  # between kernels
    busy_seconds: dict[str, float]  # of the links of each axis
    exposed_seconds: dict[str, float]  # of them those in which the device waits
    step_seconds: float
    model_flops: float  # of one rank's share of the step, nothing computed again
    mfu: float
    rows_per_second: float  # of one device
    peak_bytes: float
    room_bytes: float  # what the peak may be

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.room_bytes


def estimate(trace: Trace, config: Config, cluster: Cluster) -> Estimate:
    """Time and memory of a traced step on a cluster.

    step = seconds of its timeline + what is left between kernels; MFU = model FLOPs / (step * peak)
    """
    pricing, gpu = pricing_of(trace, config, cluster), cluster.gpu
    compute = seconds = 0.0
    busy: dict[str, float] = defaultdict(float)
    exposed: dict[str, float] = defaultdict(float)
    for stretch in trace.stretches:
        lanes = timeline_of([stretch], trace, config, cluster)
        compute += stretch.times * lanes.compute
        seconds += stretch.times * lanes.seconds
        for total, part in ((busy, lanes.busy), (exposed, lanes.exposed)):
            for axis, value in part.items():
                total[axis] += stretch.times * value
    paced = compute * pricing.rates.paced
    learnt = 1.0 - idle_share(config, trace.mesh[0] * trace.mesh[1])
    step, flops = seconds + paced, learnt * model_flops(trace, config)
    return Estimate(
        compute_seconds=compute,
        paced_seconds=paced,
        busy_seconds=dict(busy),
        exposed_seconds={axis: exposed[axis] for axis in busy},
        step_seconds=step,
        model_flops=flops,
        mfu=flops / (step * gpu.flops_per_second),
        rows_per_second=learnt * trace.rows / step,
        peak_bytes=sum(trace.peak.values()),
        room_bytes=gpu.memory_bytes - cluster.reserved_bytes,
    )


def pricing_of(trace: Trace, config: Config, cluster: Cluster) -> Pricing:
    """Seconds of the calls of a trace, whose packs are full."""
    counts = full_pack(config).counts
    rates = Rates.of(cluster.gpu)
    if cluster.attention_flops_per_second is not None:
        rates = dataclasses.replace(rates, attention=cluster.attention_flops_per_second)
    return Pricing.of(config, rates, counts.attention_pairs / counts.rows)


def timeline_of(stretches: Sequence[Stretch], trace: Trace, config: Config, cluster: Cluster) -> Timeline:
    """Stretches of a trace, each once, one after the other."""
    price = pricing_of(trace, config, cluster).seconds
    return lay_out(stretches, trace.mesh, cluster, price, config.parallel.async_tensor)


def model_flops(trace: Trace, config: Config) -> float:
    """One rank's share of the closed form of a step whose packs are full of the longest samples."""
    counts = full_pack(config).counts
    pack = training_flops(
        config,
        rows=counts.rows,
        attention_pairs=counts.attention_pairs,
        head_slots=config.data.bag_tokens_per_pack,
        patches=counts.patches,
    )
    return trace.microbatches * pack / trace.ranks_of_pack
