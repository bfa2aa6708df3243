"""Training steps of a config on one device, and what a plan says of their memory."""

from __future__ import annotations

import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts
from oneflow_dist.guard.guard import Guard
from oneflow_dist.measuring.batches import make_batch
from oneflow_dist.measuring.timing import INPUT_SETS, time_steps
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.optim import MovingAverage, make_optimizer
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.planning.gpus import GIB
from oneflow_dist.train import build_model, train_step


def measure_training(config: Config, steps: int, device: torch.device) -> dict[str, object]:
    """Whole steps as the training loop makes them, moving average included, on made-up captioned images.

    Rates count rows that hold something; padding is computed too, but is nobody's work.
    """
    model = build_model(config, make_mesh(config, 1, device.type), device)
    optimizer, guard = make_optimizer(model, config.optim), Guard(config)
    ema = MovingAverage(model, config.optim.ema_decay)
    batches = [make_batch(config, number).to(device) for number in range(INPUT_SETS)]

    def step(number: int) -> None:
        train_step(model, optimizer, [batches[number]], 1, config, guard)
        ema.update(model, 1)

    times = time_steps(step, steps, device)
    counts = sum((batches[number % INPUT_SETS].counts for number in range(steps)), Counts.zeros())
    flops = sum(step_flops(batches[number % INPUT_SETS].counts, config) for number in range(steps))
    seconds = sum(times.seconds)
    return {
        "parameters": num_parameters(model),
        "rows_per_second": counts.rows / seconds,
        "documents_per_second": counts.sequences / seconds,
        "tflops": flops / seconds / 1e12,
        "flops_per_document": flops / counts.sequences,
        "padding_share": 1.0 - counts.rows / counts.padded_rows,
        "slots_with_logits_share": counts.filled_slots / counts.rows,
        **times.report(),
    }


def plan_training(config: Config) -> dict[str, object]:
    """GiB of a step at its peak by kind, and their sum, as planned without a device.

    The planned step is eager, and its packs are full to every capacity.
    """
    from oneflow_dist.planning.trace import trace_step  # here: it needs more of torch than a step does

    peak = trace_step(config, 1).peak
    return {"peak_gib": sum(peak.values()) / GIB, "by_kind": {kind: size / GIB for kind, size in peak.items()}}
