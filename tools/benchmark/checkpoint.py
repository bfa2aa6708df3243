"""How long a checkpoint holds up the steps of a run: written in the foreground and in the background, in turn."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.config import Config, load_config
from oneflow_dist.runtime import end_process, is_main, log, run_program, start_process

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Under torchrun it measures that many ranks. run.folder must not be there yet."
    )
    parser.add_argument("config", help="what to train")
    parser.add_argument("--rounds", type=int, default=3, help="saves of each kind")
    parser.add_argument("--steps", type=int, default=4, help="after each save; the write should be done by their end")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    if Path(config.run.folder).exists():
        raise ValueError(f"{config.run.folder}: is there already, and would be deleted; name another run.folder")
    device = start_process(config.data.workers)  # after which all have looked
    log(json.dumps(measure(config, args.rounds, args.steps, device), indent=2))
    if is_main():
        shutil.rmtree(config.run.folder)
    end_process()


def measure(config: Config, rounds: int, num_steps: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a step alone, and those that each save adds to `num_steps` steps."""
    # Here, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch.distributed as dist

    from oneflow_dist.checkpoint import CheckpointWriter
    from oneflow_dist.data.loader import PackLoader
    from oneflow_dist.guard.guard import Guard
    from oneflow_dist.optim import MovingAverage, make_optimizer
    from oneflow_dist.parallel.mesh import make_mesh
    from oneflow_dist.progress import Progress, checkpoint_folder
    from oneflow_dist.training import build_model, train_step

    mesh = make_mesh(config, dist.get_world_size(), device.type)
    model = build_model(config, mesh, device)
    optimizer, ema = make_optimizer(model, config.optim), MovingAverage(model, config.optim.ema_decay)
    guard = Guard(config)
    loader = PackLoader(config, dist.get_rank(), dist.get_world_size())
    step = 0

    def make_steps() -> list[float]:
        nonlocal step
        seconds = []
        for _ in range(num_steps):
            start = time.perf_counter()
            step += 1
            train_step(model, optimizer, ema, loader.next_step(device), step, config, guard)
            seconds.append(time.perf_counter() - start)
        return seconds

    make_steps()  # allocates
    alone = sum(make_steps() + make_steps()) / 2
    kinds: dict[str, list[dict[str, float]]] = {"foreground": [], "background": []}
    writers = {kind: CheckpointWriter(with_background(config, kind), model, optimizer, ema) for kind in kinds}
    for _ in range(rounds):
        for kind, writer in writers.items():
            start = time.perf_counter()
            writer.save(Progress(step=step, lanes=loader.states))
            saved = time.perf_counter()
            make_steps()
            stepped = time.perf_counter()
            writer.wait()
            waited = time.perf_counter()
            times = {"save": saved - start, "wait": waited - stepped, "held_up": waited - start - alone}
            kinds[kind].append({key: round(seconds, 3) for key, seconds in times.items()})
    parts = checkpoint_folder(config.run.folder, step - num_steps).iterdir()
    return {
        "ranks": dist.get_world_size(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint_mib": sum(part.stat().st_size for part in parts) >> 20,
        "seconds_of_a_step": round(alone / num_steps, 3),
        "seconds": kinds,
    }


def with_background(config: Config, kind: str) -> Config:
    """The same run with saves of that kind."""
    return dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, background=kind == "background")
    )


if __name__ == "__main__":
    run_program(main)
