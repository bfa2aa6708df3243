"""The training step and the loop."""

# Shapes: m microbatches of this rank, L losses.

from __future__ import annotations

import dataclasses
import time

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from oneflow_dist.checkpoint import CheckpointWriter, list_changes, load_checkpoint
from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, Losses, PackedBatch, StepMetrics
from oneflow_dist.data.identity import check_decoder, compare_data
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.guard.guard import Guard
from oneflow_dist.metrics import MetricsLog, profiled, step_values
from oneflow_dist.model.flops import describe_step, num_parameters, step_flops
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage, clip_gradients, learning_rate, make_optimizer, set_learning_rate
from oneflow_dist.parallel.mesh import data_rank, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import count_once, shard_model, sync_gradients
from oneflow_dist.pictures import draw_progress, load_decoder
from oneflow_dist.progress import Progress, find_latest
from oneflow_dist.runtime import any_algorithms, collect_garbage, is_main, log
from oneflow_dist.signals import StopSignals
from oneflow_dist.verdict import tell


def train_step(
    model: OneFlow,
    optimizer: torch.optim.Optimizer,
    ema: MovingAverage,
    batches: list[PackedBatch],
    step: int,
    config: Config,
    guard: Guard,
) -> StepMetrics:
    """One optimizer step over the gradient-accumulation `batches` of this rank, unless `guard` leaves it out.

    Raises:
        FloatingPointError: too many steps were left out. The weights are still those before the step.
    """
    guard.enter("waiting for the other ranks", step)
    counts = global_counts(batches)  # of the whole step: one all-reduce
    guard.enter("forward and backward", step)
    losses, sums = compute_gradients(model, batches, counts, config, guard.stop_signal)
    *totals, grad_norm, stops = sums.cpu()  # the only wait for the device
    metrics = StepMetrics(losses=Losses.unstack(torch.stack(totals)), grad_norm=grad_norm.item(), counts=counts)
    skipped = guard.reason_to_skip(metrics, losses, batches, step)
    guard.enter("optimizer step", step)
    if skipped:
        optimizer.zero_grad()
    else:
        update_weights(model, optimizer, ema, step, config)
    return dataclasses.replace(metrics, skipped=skipped, is_last=stops.item() > 0.0)


def compute_gradients(
    model: OneFlow, batches: list[PackedBatch], counts: Counts, config: Config, stop_signal: str = ""
) -> tuple[Float32[Tensor, "m L"], Float32[Tensor, "_"]]:
    """The clipped gradient of a whole step, in the model's parameters.

    Args:
        batches: the m microbatches of this rank.
        counts: of the whole step.
        stop_signal: what this rank has been told, see `sum_over_ranks`.

    Returns:
        The losses of each microbatch of this rank, and what `sum_over_ranks` makes of them; still on the device.
    """
    losses = []
    for number, batch in enumerate(batches, start=1):
        sync_gradients(model, is_last=number == len(batches))
        of_batch = compute_losses(model(batch), batch, counts, config.flow)
        of_batch.total.backward()
        losses.append(of_batch.stack())
    grad_norm = clip_gradients(model, config.optim.max_grad_norm)
    return torch.stack(losses), sum_over_ranks(torch.stack(losses), grad_norm, stop_signal)


def update_weights(
    model: OneFlow, optimizer: torch.optim.Optimizer, ema: MovingAverage, step: int, config: Config
) -> None:
    """Move the weights along the gradients, which are then gone, and their average after them."""
    set_learning_rate(optimizer, learning_rate(step, config.train.steps, config.optim))
    optimizer.step()
    optimizer.zero_grad()
    ema.update(model, step)


def sum_over_ranks(
    losses: Float32[Tensor, "m L"], grad_norm: Float32[Tensor, ""], stop_signal: str = ""
) -> Float32[Tensor, "_"]:
    """The L losses of the whole step, its gradient norm, and how many ranks have been told to stop.

    Every rank gets the same bits, so that all decide alike. The norm is rank 0's, as replicas may differ in the last
    bit; one that is not finite on any rank is NaN on all.
    """
    norm = grad_norm if dist.get_rank() == 0 else grad_norm * 0.0
    stop = losses.new_full((1,), float(stop_signal != ""))
    values = torch.cat([losses.sum(0), norm.to(losses)[None], stop])
    dist.all_reduce(values)
    return values


def global_counts(batches: list[PackedBatch]) -> Counts:
    """The counts of all microbatches of all ranks."""
    of_rank = sum((batch.counts for batch in batches), Counts.zeros())
    values = torch.tensor(dataclasses.astuple(of_rank), dtype=torch.int64)
    dist.all_reduce(values)
    return Counts(**dict(zip((f.name for f in dataclasses.fields(Counts)), values.tolist(), strict=True)))


def train(config: Config, device: torch.device, signals: StopSignals) -> None:
    """Train to `train.steps`, from the last checkpoint of the run folder if there is one.

    Raises:
        ValueError: the run cannot go on from what is there, or the data cannot be used.
    """
    latest = find_latest(config.run.folder)
    mesh = make_mesh(config, dist.get_world_size(), device.type)
    model = build_model(config, mesh, device)
    log(f"{dist.get_world_size()} x {device.type}, {num_parameters(model):,} parameters, {describe_step(config)}")
    optimizer = make_optimizer(model, config.optim)
    ema = MovingAverage(model, config.optim.ema_decay)
    progress = Progress(step=0, lanes={})
    if latest is not None:
        progress = load_checkpoint(latest, config, model, optimizer, ema)
    loader = PackLoader(config, *data_rank(mesh), progress.lanes or None)
    for line in loader.report:
        log(line)
    if config.sampling.every_steps:  # now, so that one that is missing or another ends the run at its start
        check_decoder(
            loader.identity, config.sampling.autoencoder, load_decoder(config.sampling.autoencoder).describe()
        )
    log(f"continuing from {latest}" if latest is not None else "a new run, from step 1")
    if latest is not None:
        for line in [*list_changes(latest, config), *compare_data(progress.data, loader.identity)]:
            log(f"  from here on {line}")
    guard = Guard(config, progress.guard, signals)
    with (
        MetricsLog(config, progress.step, is_main()) as metrics_log,
        CheckpointWriter(config, model, optimizer, ema) as checkpoints,
        guard,
    ):
        for step in range(progress.step + 1, config.train.steps + 1):
            start = time.perf_counter()
            with profiled(config, step):
                guard.enter("waiting for data", step)
                batches = [count_once(batch, model.axis) for batch in loader.next_step(device)]
                metrics = train_step(model, optimizer, ema, batches, step, config, guard)
            seconds = time.perf_counter() - start
            collect_garbage(step, config.train.gc_every_steps)
            lr = learning_rate(step, config.train.steps, config.optim)
            values = step_values(metrics, lr, seconds, step_flops(metrics.counts, config))
            metrics_log.write(step, values | guard.slowest_rank(step))
            if step % config.checkpoint.every_steps == 0 or step == config.train.steps or metrics.is_last:
                guard.enter("checkpoint", step)
                checkpoints.save(Progress(step=step, lanes=loader.states, data=loader.identity, guard=guard.state))
            if metrics.is_last:
                message = f"by {guard.stop_signal or 'a signal'} after step {step}"
                log(f"stopped {message}; run the same command to go on")
                if is_main():
                    tell("stopped", message)
                return
            if config.sampling.every_steps and step % config.sampling.every_steps == 0:
                guard.enter("sampling", step)
                with ema.applied(model), any_algorithms():
                    path = draw_progress(model, config, step)
                metrics_log.add_image(step, path)
    if is_main():
        tell("finished", f"{config.train.steps} steps")
    log(f"finished: {config.train.steps} steps; next: python tools/sample.py {config.run.folder} OUTPUT")


def build_model(config: Config, mesh: DeviceMesh, device: torch.device) -> OneFlow:
    """The sharded model with its first weights: no rank ever holds all of it."""
    with torch.device("meta"):
        model = OneFlow(config, tensor_axis(mesh))
    shard_model(model, mesh, config)
    model.to_empty(device="cpu" if config.optim.offload else device)
    initialize(model, config.run.seed, config.model.num_layers)
    return model
