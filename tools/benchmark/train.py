"""How fast a run trains: its own steps, timed phase by phase, and what they are of what the devices could do."""

from __future__ import annotations

import dataclasses
import resource
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from resource import RUSAGE_SELF

import numpy as np
import torch
import torch.distributed as dist

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch, StepMetrics
from oneflow_dist.data.loader import PackLoader, packs_of_rank
from oneflow_dist.guard.guard import Guard
from oneflow_dist.guard.skipping import LaunchedStep
from oneflow_dist.metrics import padding
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import MovingAverage
from oneflow_dist.parallel.dealing import deal_pack
from oneflow_dist.parallel.mesh import data_rank, make_mesh
from oneflow_dist.planning.batches import make_batch
from oneflow_dist.planning.gpus import GIB
from oneflow_dist.training import build_model, train_step
from oneflow_dist.transfers import Uploads
from tools.benchmark.device import TERA
from tools.benchmark.machine import PowerMeter
from tools.benchmark.peer import PeerSteps
from tools.benchmark.result import PERCENTILES, Measured, Series
from tools.benchmark.timing import INPUT_SETS, free_memory, reset_peak, synchronize
from tools.benchmark.utilization import CONVENTION, Peak, find_peak, hardware_flops, utilization

PHASES = {  # of the guard's, as the results call them
    "waiting for data": "data",
    "waiting for the other ranks": "waiting for ranks",
    "forward and backward": "forward and backward",
    "optimizer step": "optimizer",
}
MILLISECONDS, MICROSECONDS = "milliseconds of a step", "microseconds of a row"
PEER = "torchtitan"
NextStep = Callable[[], list[PackedBatch]]


class Trainer:
    """What `training.train` makes of a config: the sharded model, its optimizer and its moving average."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device
        self.mesh = make_mesh(config, dist.get_world_size(), device.type)
        self.model = build_model(config, self.mesh, device)
        self.optimizer = make_optimizer(self.model, config)
        self.ema = MovingAverage(self.model, config.optim.ema_decay, config.optim.ema_every_steps)

    def launch(self, batches: list[PackedBatch], step: int, guard: Guard) -> LaunchedStep:
        """A step of the run."""
        return train_step(self.model, self.optimizer, self.ema, batches, step, self.config, guard)

    def step(self, batches: list[PackedBatch], step: int, guard: Guard) -> StepMetrics:
        """A step, and what became of it."""
        return guard.finish(self.launch(batches, step, guard))


class PhaseClock(Guard):
    """A guard that adds up the seconds of each phase. A phase ends when the device has done all that it was told."""

    def __init__(self, config: Config, device: torch.device):
        super().__init__(config)
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def enter(self, phase: str, step: int) -> None:
        synchronize(self.device)
        before = self.place
        super().enter(phase, step)
        self.seconds[before.phase] += self.place.since - before.since


@dataclass(slots=True)
class Timed:
    """Steps that were timed: the seconds of each by phase, and what they processed together, on all ranks."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts.zeros)
    images: int = 0
    skipped: int = 0

    @property
    def steps(self) -> list[float]:
        """Seconds of each."""
        return [sum(phases.values()) for phases in self.seconds]


def measure(
    config: Config, steps: int, warmup: int, is_synthetic: bool, has_peer: bool, device: torch.device
) -> Measured:
    """Train, after steps that warm up.

    Args:
        is_synthetic: made-up packs that lie on the device; else those of the config's data, loaded meanwhile.
        has_peer: then train torchtitan's Llama of the same shape on packs of as many rows.

    Raises:
        ValueError: the peer is asked for on several ranks.
    """
    if has_peer and dist.get_world_size() > 1:
        raise ValueError(f"--peer: runs on one rank, not on {dist.get_world_size()}; leave torchrun out")
    # What is trained on may be noise: no step is left out because of it, and none is written down.
    config = dataclasses.replace(config, guard=dataclasses.replace(config.guard, spike_factor=0.0))
    peak = find_peak(device)
    trainer, clock = Trainer(config, device), PhaseClock(config, device)
    next_step = made_up_steps(trainer) if is_synthetic else loaded_steps(trainer)
    time_training(trainer, clock, next_step, warmup)
    reset_peak(device)
    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""
    with PowerMeter(gpu) as power:
        timed = time_training(trainer, clock, next_step, steps)
    memory = peak_memory(device)
    parameters = num_parameters(trainer.model)
    del trainer, next_step
    free_memory(device)
    energy = power.watts and power.watts * dist.get_world_size() * sum(timed.steps)  # as if all drew what rank 0's does
    numbers = {
        **rates(timed, config, peak),
        **memory,
        "power of rank 0's device, W": power.watts,
        "rows per joule": energy and timed.counts.rows / energy,
        "parameters": parameters,
        "ranks": dist.get_world_size(),
        "packs": "made up" if is_synthetic else config.data.mixture,
        "steps left out as not finite": timed.skipped,
    }
    series: Series = {
        MILLISECONDS: {
            "whole": [1e3 * seconds for seconds in timed.steps],
            **{name: [1e3 * phases[phase] for phases in timed.seconds] for phase, name in PHASES.items()},
        },
        MICROSECONDS: {"ours": [1e6 * seconds / rows for rows, seconds in zip(timed.rows, timed.steps, strict=True)]},
    }
    if has_peer:
        add_peer(numbers, series, config, peak, steps, warmup, device)
    return Measured(numbers=numbers, series=series, notes=[CONVENTION])


def time_training(trainer: Trainer, clock: PhaseClock, next_step: NextStep, steps: int) -> Timed:
    """Train for so many steps, at the learning rate of the run's first."""
    timed, model = Timed(), trainer.model
    for _ in range(steps):
        clock.enter("waiting for data", 1)
        clock.seconds.clear()
        batches = next_step()
        metrics = trainer.step([deal_pack(batch, model) for batch in batches], 1, clock)
        clock.enter("between steps", 1)
        timed.seconds.append({phase: clock.seconds[phase] for phase in PHASES})
        timed.rows.append(metrics.counts.rows)
        timed.counts += metrics.counts
        timed.images += count_images(batches) if model.axis.rank == model.context.rank == 0 else 0
        timed.skipped += metrics.skipped != ""
    images = torch.tensor([timed.images])
    dist.all_reduce(images)
    timed.images = int(images)
    return timed


def peak_memory(device: torch.device) -> dict[str, float | str | None]:
    """The most that a rank has held; of a CPU's process since its start."""
    is_gpu = device.type == "cuda"
    most = torch.cuda.max_memory_allocated(device) if is_gpu else 1024 * resource.getrusage(RUSAGE_SELF).ru_maxrss
    maximum = torch.tensor([most])
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    source = "allocated on the device in the timed steps" if is_gpu else "the process's, since its start"
    return {"peak memory of a rank, GiB": int(maximum) / GIB, "peak memory is": source}


def rates(timed: Timed, config: Config, peak: Peak) -> dict[str, float | str | None]:
    """What happened a second, on all ranks, and the shares of what could have."""
    counts, seconds, ranks = timed.counts, sum(timed.steps), dist.get_world_size()
    flops = step_flops(counts, config)
    milliseconds = [1e3 * step for step in timed.steps]
    return {
        "tokens/s": counts.text_tokens / seconds,
        "rows/s": counts.rows / seconds,
        "documents/s": counts.sequences / seconds,
        "images/s": timed.images / seconds,
        "MFU": utilization(flops, seconds, peak, ranks),
        "HFU": utilization(hardware_flops(counts, config), seconds, peak, ranks),
        "TFLOP/s of a rank": flops / seconds / ranks / TERA,
        "peak TFLOP/s of a rank": peak.flops / TERA,
        "peak is": peak.source,
        "GFLOP of a document": flops / counts.sequences / 1e9,
        "padding share": padding(counts),
        "data wait share": sum(phases["waiting for data"] for phases in timed.seconds) / seconds,
        **{f"step p{percent}, ms": float(np.percentile(milliseconds, percent)) for percent in PERCENTILES},
    }


def add_peer(
    numbers: dict[str, float | str | None],
    series: Series,
    config: Config,
    peak: Peak,
    steps: int,
    warmup: int,
    device: torch.device,
) -> None:
    """Time the peer on documents as long as ours may be, and put its numbers beside ours."""
    length = min(config.data.max_sample_rows, config.data.rows_per_pack)
    peer = PeerSteps(config, config.data.rows_per_pack // length, length, uses_fsdp=True, device=device)
    clock = PhaseClock(config, device)
    for number in range(warmup + steps):
        clock.enter(PEER, 1)
        peer.step(number)
        clock.enter("between steps", 1)
        if number < warmup:
            clock.seconds.clear()
            continue
        seconds = clock.seconds.pop(PEER)
        series[MILLISECONDS].setdefault(PEER, []).append(1e3 * seconds)
        series[MICROSECONDS].setdefault(PEER, []).append(1e6 * seconds / peer.rows)
    total = sum(series[MILLISECONDS][PEER]) / 1e3
    numbers["rows/s of torchtitan"] = peer.rows * steps / total
    numbers["MFU of torchtitan"] = utilization(peer.flops * steps, total, peak)


def made_up_steps(trainer: Trainer) -> NextStep:
    """Captioned images of random content, of the config's sizes; a few packs that take turns."""
    rank, size = data_rank(trainer.mesh, trainer.config.parallel.context)
    packs = packs_of_rank(trainer.config, size)
    batches = [
        make_batch(trainer.config, INPUT_SETS * rank + number).to(trainer.device) for number in range(INPUT_SETS)
    ]
    turn = 0

    def next_step() -> list[PackedBatch]:
        nonlocal turn
        turn += packs
        return [batches[(turn + pack) % INPUT_SETS] for pack in range(packs)]

    return next_step


def open_loader(trainer: Trainer) -> PackLoader:
    """Of the packs that a run would train on, from its first step."""
    return PackLoader(trainer.config, *data_rank(trainer.mesh, trainer.config.parallel.context))


def loaded_steps(trainer: Trainer) -> NextStep:
    """What the loader has made meanwhile."""
    loader, uploads = open_loader(trainer), Uploads(trainer.device)
    return lambda: [uploads.upload(batch) for batch in loader.next_step()]


def count_images(batches: list[PackedBatch]) -> int:
    """Whole images, given or noisy, in the rows of the batches."""
    return sum(len(pieces.patch_piece.unique()) for batch in batches for pieces in batch.pieces)
