"""The training step and the loop."""

# Shapes: m microbatches of this rank, L losses.

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from oneflow_dist.checkpoint import CheckpointWriter, list_changes, load_checkpoint
from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.copies.recovery import recover
from oneflow_dist.copies.writer import CopyWriter
from oneflow_dist.data.identity import compare_data
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.first_weights import Start, start_from
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.guard.guard import Guard
from oneflow_dist.guard.skipping import LaunchedStep
from oneflow_dist.metrics import MetricsLog, profiled, step_values
from oneflow_dist.model.flops import describe_parameters, describe_step, step_flops
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import AdamW, MovingAverage, clip_divisor, gradient_norm, learning_rate
from oneflow_dist.parallel.dealing import deal_pack
from oneflow_dist.parallel.mesh import context_axis, data_rank, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import shard_model, sync_gradients
from oneflow_dist.pictures import check_decoders, draw_progress
from oneflow_dist.progress import Progress, find_latest
from oneflow_dist.runtime import any_algorithms, collect_garbage, is_main, log
from oneflow_dist.signals import StopSignals
from oneflow_dist.transfers import Moment, ToHost, Uploads
from oneflow_dist.validation import Validation
from oneflow_dist.verdict import tell


def train_step(
    model: OneFlow,
    optimizer: AdamW,
    ema: MovingAverage,
    batches: list[PackedBatch],
    step: int,
    config: Config,
    guard: Guard,
) -> LaunchedStep:
    """One optimizer step over the gradient-accumulation `batches` of this rank, unless it has to be left out.

    The host waits for no number: whether the step is left out is decided on the device, and `guard.finish` tells.
    """
    guard.enter("waiting for the other ranks", step)
    counts, is_last = agree(batches, guard.stop_signal)  # of the whole step: one all-reduce
    guard.enter("forward and backward", step)
    losses, sums = compute_gradients(model, batches, counts, config)
    is_skipped, judgement = guard.judge(sums)
    guard.enter("optimizer step", step)
    update_weights(model, optimizer, ema, sums, is_skipped, step, config)
    return LaunchedStep(
        step=step,
        counts=counts,
        is_last=is_last,
        batches=batches,
        losses=losses,
        judgement=ToHost(judgement),
        end=Moment(sums.device),
    )


def compute_gradients(
    model: OneFlow, batches: list[PackedBatch], counts: Counts, config: Config
) -> tuple[Float32[Tensor, "m L"], Float32[Tensor, "_"]]:
    """The gradient of a whole step, in the model's parameters.

    Args:
        batches: the m microbatches of this rank.
        counts: of the whole step.

    Returns:
        The losses of each microbatch of this rank, and what `sum_over_ranks` makes of them; still on the device.
    """
    losses = []
    for number, batch in enumerate(batches, start=1):
        sync_gradients(model, is_last=number == len(batches))
        of_batch = compute_losses(model(batch), batch, counts, config)
        of_batch.total.backward()
        losses.append(of_batch.stack())
    return torch.stack(losses), sum_over_ranks(torch.stack(losses), gradient_norm(model))


def update_weights(
    model: OneFlow,
    optimizer: AdamW,
    ema: MovingAverage,
    sums: Float32[Tensor, "_"],
    is_skipped: Float32[Tensor, ""],
    step: int,
    config: Config,
) -> None:
    """Move the weights along the clipped gradients, which are then gone, and their average after them.

    Args:
        sums: of `sum_over_ranks`.
        is_skipped: 1 leaves weights and moments as they are; the average goes on towards the weights.
    """
    divisor = clip_divisor(sums[-1], config.optim.max_grad_norm)
    optimizer.step(learning_rate(step, config.train.steps, config.optim), divisor, is_skipped)
    optimizer.zero_grad()
    ema.update(model, step)


def sum_over_ranks(losses: Float32[Tensor, "m L"], grad_norm: Float32[Tensor, ""]) -> Float32[Tensor, "_"]:
    """The L losses of the whole step and its gradient norm, before clipping.

    Every rank gets the same bits, so that all decide alike. The norm is rank 0's, as replicas may differ in the last
    bit; one that is not finite on any rank is NaN on all.
    """
    norm = grad_norm if dist.get_rank() == 0 else grad_norm * 0.0
    values = torch.cat([losses.sum(0), norm.to(losses)[None]])
    dist.all_reduce(values)
    return values


def agree(batches: list[PackedBatch], stop_signal: str = "") -> tuple[Counts, bool]:
    """The counts of all microbatches of all ranks, and whether any of these has been told to stop; all on the host."""
    of_rank = sum((batch.counts for batch in batches), Counts.zeros())
    values = torch.tensor([*of_rank.to_list(), stop_signal != ""], dtype=torch.int64)
    dist.all_reduce(values)
    *counts, stops = values.tolist()
    return Counts.from_list(counts), stops > 0


def train(config: Config, device: torch.device, signals: StopSignals) -> None:
    """Train to `train.steps`, from the last checkpoint of the run folder if there is one.

    Raises:
        ValueError: the run cannot go on from what is there, or the data cannot be used.
    """
    latest = recover(config, find_latest(config.run.folder))
    mesh = make_mesh(config, dist.get_world_size(), device.type)
    model = build_model(config, mesh, device)
    log(f"{dist.get_world_size()} x {device.type}, {describe_parameters(model)}, {describe_step(config)}")
    optimizer, start = make_optimizer(model, config), Start()
    if latest is None and config.init.path:
        start = start_from(config, model, optimizer)
    ema = MovingAverage(model, config.optim.ema_decay, config.optim.ema_every_steps)
    progress = Progress(step=0, lanes={})
    if latest is not None:
        progress = load_checkpoint(latest, config, model, optimizer, ema)
    rank, num_ranks = data_rank(mesh, config.parallel.context)
    loader = PackLoader(config, rank, num_ranks, progress.lanes or None)
    for line in loader.report:
        log(line)
    validation = Validation(config, rank, num_ranks, model, device) if config.validation.mixture else None
    if config.sampling.every_steps:  # now, so that one that is missing or another ends the run at its start
        check_decoders(config, loader.identity)
    compare_data(start.data, loader.identity)  # tokens and latents mean what they did; sources may be others
    for line in [f"continuing from {latest}" if latest is not None else "a new run, from step 1", *start.lines]:
        log(line)
    if latest is not None:
        for line in [*list_changes(latest, config), *compare_data(progress.data, loader.identity)]:
            log(f"  from here on {line}")
    guard, uploads = Guard(config, progress.guard, signals), Uploads(device)
    under_way: list[tuple[Moment, float, LaunchedStep]] = []  # not looked at yet; begin, seconds without data
    with (
        MetricsLog(config, progress.step, is_main()) as metrics_log,
        CopyWriter(config, model, optimizer, ema) as copies,
        CheckpointWriter(config, model, optimizer, ema) as checkpoints,
        guard,
    ):
        begin = Moment(device)
        for step in range(progress.step + 1, config.train.steps + 1):
            with profiled(config, step):
                guard.enter("waiting for data", step)
                asked = time.monotonic()
                batches = [uploads.upload(deal_pack(batch, model)) for batch in loader.next_step()]
                waited = time.monotonic() - asked
                made = train_step(model, optimizer, ema, batches, step, config, guard)
            under_way.append((begin, waited, made))
            begin = made.end
            collect_garbage(step, config.train.gc_every_steps)
            is_saved = step % config.checkpoint.every_steps == 0 or step == config.train.steps or made.is_last
            is_validated = validation is not None and validation.is_due(step) and not made.is_last
            is_drawn = config.sampling.every_steps > 0 and step % config.sampling.every_steps == 0
            is_copied = copies.is_due(step) and not made.is_last
            is_looked_at = is_saved or is_copied or is_drawn or is_validated
            while len(under_way) > (0 if is_looked_at else 1):  # one step late, so that the device is busy
                write_metrics(*under_way.pop(0), guard, metrics_log, config)
            if validation is not None and is_validated:  # before the checkpoint: who goes on from it has these values
                guard.enter("validation", step)
                metrics_log.add(step, validation.measure(model, ema))
            if is_saved or is_copied:
                guard.enter("checkpoint", step)
                reached = Progress(step=step, lanes=loader.states, data=loader.identity, guard=guard.state)
                if is_copied:
                    copies.save(reached)
                if is_saved:
                    checkpoints.save(reached)
                    metrics_log.note_checkpoint()
            if made.is_last:
                message = f"by {guard.stop_signal or 'a signal'} after step {step}"
                log(f"stopped {message}; run the same command to go on")
                if is_main():
                    tell("stopped", message)
                return
            if is_drawn:
                guard.enter("sampling", step)
                with ema.applied(model), any_algorithms():
                    path = draw_progress(model, config, step)
                metrics_log.add_image(step, path)
            if is_looked_at:
                begin = Moment(device)
    if is_main():
        tell("finished", f"{config.train.steps} steps")
    log(f"finished: {config.train.steps} steps; next: oneflow serve {config.run.folder}")


def write_metrics(
    begin: Moment, waited: float, made: LaunchedStep, guard: Guard, metrics_log: MetricsLog, config: Config
) -> None:
    """What became of a step, when the device has made it; all ranks call together.

    Raises:
        FloatingPointError: too many steps were left out.
    """
    metrics = guard.finish(made)
    lr, flops = learning_rate(made.step, config.train.steps, config.optim), step_flops(made.counts, config)
    seconds = made.end.seconds_since(begin)
    guard.pace.note(made.step, seconds)
    values = step_values(metrics, config.modality, lr, seconds, waited, flops)
    metrics_log.write(made.step, values | guard.slowest_rank(made.step))


def build_model(config: Config, mesh: DeviceMesh, device: torch.device) -> OneFlow:
    """The sharded model with its first weights: no rank ever holds all of it."""
    with torch.device("meta"):
        model = OneFlow(config, tensor_axis(mesh), context_axis(mesh, config.parallel.context))
    shard_model(model, mesh, config)
    model.to_empty(device="cpu" if config.optim.offload else device)
    initialize(model, config.run.seed, config.model.num_layers)
    model.load_encoders(device)
    return model
