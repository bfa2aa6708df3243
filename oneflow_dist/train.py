"""The training step and the loop: `python -m oneflow_dist.train configs/x.toml [section.key=value ...]`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from oneflow_dist.checkpoint import Progress, find_latest, load_checkpoint, save_checkpoint
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Counts, Losses, PackedBatch, StepMetrics
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.flow.losses import are_finite, compute_losses
from oneflow_dist.metrics import MetricsLog, step_values, traced
from oneflow_dist.model.flops import describe, step_flops
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage, clip_gradients, learning_rate, make_optimizer, set_learning_rate
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.parallel.sharding import shard_model, sync_gradients
from oneflow_dist.parallel.titan import collect_garbage
from oneflow_dist.pictures import draw_progress, load_decoder
from oneflow_dist.runtime import end_process, is_main, log, run_program, start_process


def train_step(
    model: OneFlow, optimizer: torch.optim.Optimizer, batches: list[PackedBatch], step: int, config: Config
) -> StepMetrics:
    """One optimizer step over the gradient-accumulation `batches` of this rank.

    Raises:
        FloatingPointError: a loss or the gradient norm is not finite. The weights are still those before the step.
    """
    counts = global_counts(batches)  # of the whole step: one all-reduce
    sums = []
    for number, batch in enumerate(batches, start=1):
        sync_gradients(model, is_last=number == len(batches))
        losses = compute_losses(model(batch), batch, counts, config.flow.normalize, config.flow.image_weight)
        losses.total.backward()
        sums.append(losses.stack())
    grad_norm = clip_gradients(model, config.optim.max_grad_norm)
    total = torch.stack(sums).sum(0)
    dist.all_reduce(total)
    metrics = StepMetrics(losses=Losses.unstack(total.cpu()), grad_norm=grad_norm, counts=counts)
    check_finite(metrics, sums, batches, step, config)
    set_learning_rate(optimizer, learning_rate(step, config.train.steps, config.optim))
    optimizer.step()
    optimizer.zero_grad()
    return metrics


def global_counts(batches: list[PackedBatch]) -> Counts:
    """The counts of all microbatches of all ranks."""
    own = sum((batch.counts for batch in batches), Counts.zeros())
    values = torch.tensor(dataclasses.astuple(own), dtype=torch.int64)
    dist.all_reduce(values)
    return Counts(**dict(zip((f.name for f in dataclasses.fields(Counts)), values.tolist(), strict=True)))


def check_finite(
    metrics: StepMetrics, own: list[torch.Tensor], batches: list[PackedBatch], step: int, config: Config
) -> None:
    """Raise FloatingPointError on all ranks if a loss or the gradient norm is not finite; keep the bad batches."""
    if are_finite(metrics.losses) and math.isfinite(metrics.grad_norm):
        return
    bad = {n: batch for n, (batch, sums) in enumerate(zip(batches, own, strict=True)) if not torch.isfinite(sums).all()}
    report: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(report, [key for batch in bad.values() for key in batch.keys])
    for number, batch in bad.items():
        path = Path(config.run.folder) / f"bad-batch-step-{step:08d}-rank-{dist.get_rank()}-pack-{number}.pt"
        torch.save(dataclasses.asdict(batch), path)
    dist.barrier()
    ranks = [rank for rank, keys in enumerate(report) if keys]
    where = f"rank {', '.join(map(str, ranks))}" if ranks else "the gradients of all ranks"
    samples = [key for keys in report for key in keys]
    named = f"; samples {', '.join(samples[:8])} ({len(samples)} in all)" if samples else ""
    kept = f"; their batches are in {config.run.folder}/bad-batch-*.pt" if samples else ""
    values = ", ".join(f"{f.name} {getattr(metrics.losses, f.name):g}" for f in dataclasses.fields(Losses))
    raise FloatingPointError(
        f"step {step}, {where}: not finite: {values}, gradient norm {metrics.grad_norm:g}{named}{kept}; "
        "the weights were not changed; lower optim.lr or inspect the samples"
    )


def train(config: Config, device: torch.device) -> None:
    """Train to `train.steps`, from the last checkpoint of the run folder if there is one."""
    mesh = make_mesh(config.parallel, dist.get_world_size(), device.type)
    model = build_model(config, mesh, device)
    optimizer = make_optimizer(model, config.optim)
    ema = MovingAverage(model, config.optim.ema_decay)
    if config.sampling.every_steps:
        load_decoder(config.sampling.autoencoder)  # now, so that a folder that is missing ends the run at its start
    latest = find_latest(config.run.folder)
    progress = Progress(step=0, lanes={})
    if latest is not None:
        progress = load_checkpoint(latest, config, model, optimizer, ema)
        log(f"continuing from {latest}")
    loader = PackLoader(config, dist.get_rank(), dist.get_world_size(), progress.lanes or None)
    collect = collect_garbage(config.train.gc_every_steps)
    with MetricsLog(config, progress.step, is_main()) as metrics_log:
        for step in range(progress.step + 1, config.train.steps + 1):
            start = time.perf_counter()
            with traced(config, step):
                batches = loader.next_step(device)
                metrics = train_step(model, optimizer, batches, step, config)
                ema.update(model, step)
            seconds = time.perf_counter() - start
            collect(step)
            lr = learning_rate(step, config.train.steps, config.optim)
            metrics_log.write(step, step_values(metrics, lr, seconds, step_flops(metrics.counts, config)))
            if step % config.checkpoint.every_steps == 0 or step == config.train.steps:
                save_checkpoint(config, Progress(step=step, lanes=loader.states), model, optimizer, ema)
            if config.sampling.every_steps and step % config.sampling.every_steps == 0:
                with ema.applied(model):
                    path = draw_progress(model, config, step)
                metrics_log.add_image(step, path)


def build_model(config: Config, mesh: DeviceMesh, device: torch.device) -> OneFlow:
    """The sharded model with its first weights: no rank ever holds all of it."""
    with torch.device("meta"):
        model = OneFlow(config)
    shard_model(model, mesh, config.train, config.optim.offload)
    model.to_empty(device="cpu" if config.optim.offload else device)
    initialize(model, config.run.seed, config.model.num_layers)
    return model


def dry_run(config: Config) -> None:
    """Print the config, the parameters and the capacities, without data or devices."""
    with torch.device("meta"):
        model = OneFlow(config)
    print(write_config(config))
    print(describe(model, config))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train a OneFlow model; run the same command again to resume.")
    parser.add_argument("config", help="TOML file, as configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    parser.add_argument("--dry-run", action="store_true", help="print the config and the sizes, train nothing")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        dry_run(config)
        return
    device = start_process(config.data.workers)
    train(config, device)
    end_process()


if __name__ == "__main__":
    run_program(main)
