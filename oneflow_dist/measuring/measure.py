"""One measurement in this process: what `jobs` starts, with its task as the only argument."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts, NoisySample, PackedBatch, Sample
from oneflow_dist.data.lanes import capacity_of
from oneflow_dist.data.packing import choose_samples, pack, size_of
from oneflow_dist.flow.noising import gaussian, keyed_generator, noise_sample
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.guard.guard import Guard
from oneflow_dist.measuring.contest import run_case
from oneflow_dist.measuring.jobs import Job, Settings
from oneflow_dist.measuring.kernels import all_cases, fastest_launches, measure_kernels
from oneflow_dist.measuring.peer import Titan
from oneflow_dist.measuring.timing import INPUT_SETS, Steps, time_steps
from oneflow_dist.model.flops import num_parameters, step_flops, training_flops
from oneflow_dist.optim import MovingAverage, make_optimizer
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.planning.gpus import GIB
from oneflow_dist.runtime import end_process, start_process
from oneflow_dist.train import build_model, train_step


def measure(job: Job, settings: Settings) -> dict[str, Any]:
    """The numbers of a job. One pack a step: this measures one device, not a cluster's batch."""
    overrides = ["data.packs_per_step=1", *settings.overrides, *job.overrides]
    config = load_config(settings.config, overrides)
    if job.kind == "plan":
        return plan_training(config)
    device = start_process()
    if job.kind == "kernels":
        measured = measure_kernels(device)
    elif job.kind == "tune":
        measured = fastest_launches(device)
    elif job.kind == "case":
        (case,) = (case for case in all_cases(device) if case.name == job.name)
        measured = run_case(case, device)
    elif job.kind == "peer":
        measured = measure_peer(config, job.sequences, job.uses_fsdp, settings.steps, device)
    else:
        measured = measure_training(config, settings.steps, device)
    end_process()
    return measured


def measure_training(config: Config, steps: int, device: torch.device) -> dict[str, Any]:
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
    return {
        **rates(model, times, counts.rows, counts.sequences, step_flops(counts, config)),
        "padding_share": 1.0 - counts.rows / counts.padded_rows,
        "slots_with_logits_share": counts.filled_slots / counts.rows,
    }


def measure_peer(config: Config, sequences: int, uses_fsdp: bool, steps: int, device: torch.device) -> dict[str, Any]:
    """Steps of torchtitan's Llama of the same shape on the same number of rows, as `sequences` equal documents.

    Its embedding and unembedding are two weights; it has no moving average. Random tokens, all of them scored.
    """
    length = config.data.rows_per_pack // sequences
    titan = Titan(config, length, uses_fsdp, device)
    generator = torch.Generator().manual_seed(0)
    shape = (INPUT_SETS, sequences, length + 1)
    tokens = torch.randint(config.model.vocab_size, shape, generator=generator).to(device)
    times = time_steps(lambda number: titan.step(tokens[number]), steps, device)
    rows, pairs = steps * sequences * length, steps * sequences * length**2 / 2
    flops = training_flops(config, rows=rows, attention_pairs=pairs, head_slots=rows)
    return {
        **rates(titan.model, times, rows, steps * sequences, flops),
        "tflops_by_its_own_formula": titan.flops_per_token * rows / sum(times.seconds) / 1e12,
        "padding_share": 0.0,
        "slots_with_logits_share": 1.0,
    }


def rates(model: nn.Module, times: Steps, rows: int, documents: int, flops: float) -> dict[str, Any]:
    """What both sides report of timed steps, which took so many rows, documents and FLOPs together."""
    seconds = sum(times.seconds)
    return {
        "parameters": num_parameters(model),
        "rows_per_second": rows / seconds,
        "documents_per_second": documents / seconds,
        "tflops": flops / seconds / 1e12,
        "flops_per_document": flops / documents,
        **times.report(),
    }


def plan_training(config: Config) -> dict[str, Any]:
    """GiB of a step at its peak by kind, and their sum, as planned without a device.

    The planned step is eager, and its packs are full to every capacity.
    """
    from oneflow_dist.planning.trace import trace_step  # here: it needs more of torch than a step does

    peak = trace_step(config, 1).peak
    return {"peak_gib": sum(peak.values()) / GIB, "by_kind": {kind: size / GIB for kind, size in peak.items()}}


def make_batch(config: Config, number: int) -> PackedBatch:
    """A full pack of captioned images with random tokens and patches, noised as in training; the same for a number."""
    rng = keyed_generator(config.run.seed, number, "made-up samples")
    capacity, image = capacity_of(config), config.image
    schedule = KeepSchedule(kind=config.flow.keep_schedule, exponent=config.flow.keep_exponent)
    room = config.data.max_sample_rows - image.num_rows - 2
    noisy: list[NoisySample] = []
    while size_of(noisy).rows < 1.2 * capacity.rows:
        length = int(rng.integers(room // 4, room + 1))
        tokens = rng.integers(0, config.model.vocab_size, length + 2)
        sample = Sample(
            key=f"made-up/{len(noisy)}",
            tokens=tokens,
            is_target=np.arange(length + 2) > 0,
            image_at=np.array([length + 1]),
            patches=gaussian(rng, (image.num_rows, image.patch_elements)),
            grid=np.array([image.grid]),
            is_interleaved=False,
        )
        noisy.append(noise_sample(sample, schedule, 0.0, rng))
    chosen = choose_samples([size_of([sample]) for sample in noisy], capacity)
    return pack([noisy[index] for index in chosen], capacity)


def telling_errors(result: Path) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """A hook for exceptions that nobody catches: the first line of the message goes to the result file."""

    def tell(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        first = str(error).strip().partition("\n")[0]
        result.write_text(json.dumps({"error": f"{kind.__name__}: {first}"}))
        sys.__excepthook__(kind, error, at)
        leave(1)

    return tell


def main() -> None:
    """Entry point."""
    task = json.loads(sys.argv[1])
    result = Path(task["result"])
    sys.excepthook = telling_errors(result)
    result.write_text(json.dumps({"measured": measure(Job(**task["job"]), Settings(**task["settings"]))}))
    leave(0)


def leave(code: int) -> NoReturn:
    """End without the interpreter's shutdown, in which the threads of process groups and compilers may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
