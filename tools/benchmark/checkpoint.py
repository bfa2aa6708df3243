"""How long a checkpoint holds up the steps of a run: in the foreground, in the background and to memory, in turn."""

from __future__ import annotations

import dataclasses
import shutil
import time

import torch
import torch.distributed as dist
from torch import nn

from oneflow_dist.checkpoint import CheckpointWriter
from oneflow_dist.config import Config
from oneflow_dist.copies.writer import CopyWriter
from oneflow_dist.guard.guard import Guard
from oneflow_dist.model.flops import num_parameters
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.progress import Progress, checkpoint_folder
from oneflow_dist.runtime import is_main
from tools.benchmark.result import Measured, Series
from tools.benchmark.train import Trainer, open_loader

KINDS = ("foreground", "background", "memory")
SAVE, WAIT, HELD_UP = "seconds of a save", "seconds until it is written, after the steps", "seconds held up in all"
BUSY = "seconds of a core, beyond those of the steps"  # what other work on the machine does not change


def measure(config: Config, rounds: int, num_steps: int, device: torch.device) -> Measured:
    """Seconds of a step alone, and those that each save adds to `num_steps` steps; the run's folder goes."""
    trainer, guard = Trainer(config, device), Guard(config)
    loader = open_loader(trainer)
    step = 0

    def make_steps() -> list[float]:
        nonlocal step
        seconds = []
        for _ in range(num_steps):
            start = time.perf_counter()
            step += 1
            trainer.step([batch.to(device) for batch in loader.next_step()], step, guard)
            seconds.append(time.perf_counter() - start)
        return seconds

    make_steps()  # allocates
    busy = time.process_time()
    alone = sum(make_steps() + make_steps()) / 2
    busy_alone = (time.process_time() - busy) / 2
    series: Series = {what: {kind: [] for kind in KINDS} for what in (SAVE, WAIT, HELD_UP, BUSY)}
    state = trainer.model, trainer.optimizer, trainer.ema
    writers = {kind: make_writer(config, kind, state) for kind in KINDS}
    for _ in range(rounds):
        for kind, writer in writers.items():
            start, busy = time.perf_counter(), time.process_time()
            writer.save(Progress(step=step, lanes=loader.states))
            saved = time.perf_counter()
            make_steps()
            stepped = time.perf_counter()
            writer.wait()
            waited = time.perf_counter()
            series[SAVE][kind].append(saved - start)
            series[WAIT][kind].append(waited - stepped)
            series[HELD_UP][kind].append(waited - start - alone)
            series[BUSY][kind].append(time.process_time() - busy - busy_alone)
    parts = checkpoint_folder(config.run.folder, step - 2 * num_steps).iterdir()  # before the steps of two kinds
    numbers: dict[str, float | str | None] = {
        "parameters": num_parameters(trainer.model),
        "checkpoint, MiB": sum(part.stat().st_size for part in parts) >> 20,
        "seconds of a step": alone / num_steps,
        "steps after a save": num_steps,
    }
    with writers["memory"]:  # which then lets its copies go
        dist.barrier()  # all have looked
    if is_main():
        shutil.rmtree(config.run.folder)
    return Measured(numbers=numbers, series=series)


def make_writer(
    config: Config, kind: str, state: tuple[nn.Module, AdamW, MovingAverage]
) -> CheckpointWriter | CopyWriter:
    """Of the same run, with saves of that kind."""
    changed = dataclasses.replace(config.checkpoint, background=kind == "background", memory_every_steps=1)
    config = dataclasses.replace(config, checkpoint=changed)
    return CopyWriter(config, *state) if kind == "memory" else CheckpointWriter(config, *state)
