"""One job in this process, from its task to its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts
from oneflow_dist.guard.guard import Guard
from oneflow_dist.guard.skipping import LaunchedStep
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.planning.batches import make_batch
from oneflow_dist.runtime import start_process
from tools.benchmark.device import device_rates
from tools.benchmark.jobs import AGAIN, TUNED, Job
from tools.benchmark.kernel_checks import run_checks
from tools.benchmark.kernel_times import kernel_times
from tools.benchmark.kernels import all_cases, measure_case, measure_launches
from tools.benchmark.link import Link
from tools.benchmark.machine import ROOT
from tools.benchmark.peer import PeerSteps
from tools.benchmark.report import Line
from tools.benchmark.timing import INPUT_SETS, free_memory, host_waits, running_ms, time_steps
from tools.benchmark.train import Trainer

STEPS = 20  # packs, timed in steps of one or several


def measure_task(task: dict[str, Any], link: Link) -> None:
    """A job as `processes` sends it."""
    job = Job(**task["job"] | {"what": tuple(task["job"]["what"])})
    config = load_config(task["config"], ["data.packs_per_step=1", *task["overrides"], *job.overrides])
    measure(job, config, Path(task["folder"]), link, start_process())


def measure(job: Job, config: Config, folder: Path, link: Link, device: torch.device) -> None:
    """Tell the numbers of a job."""
    if job.kind == "device":
        measure_device(config, link, device)
    elif job.kind == "ours":
        measure_training(job, config, link, device)
    elif job.kind == "peer":
        measure_peer(job, config, link, device)
    elif job.kind == "case":
        (case,) = (case for case in all_cases(config, device) if case.name in job.what)
        measure_case(case, TUNED if job.name.endswith(TUNED) else "", job.is_profiled, link, device)
    elif job.kind == "checks":
        for line in run_checks(device, 1000 if device.type == "cuda" else 60, job.what):
            link.tell("check", **line)
    else:
        measure_launches(job.what, folder, link, device)


def measure_device(config: Config, link: Link, device: torch.device) -> None:
    """Its rates, at the shapes of the config's model; on a GPU at those of the 8B model, too."""
    models = {"1B": config}
    if device.type == "cuda":
        models["8B"] = load_config(str(ROOT / "configs" / "oneflow_8b.toml"), [])
    link.ready()
    for line in device_rates(device, models):
        link.tell("rate", **line)


def measure_training(job: Job, config: Config, link: Link, device: torch.device) -> None:
    """Whole steps as the training loop makes them, moving average included, on made-up captioned images.

    Rates count rows that hold something; padding is computed too, but is nobody's work.
    """
    trainer, guard = Trainer(config, device), Guard(config)
    batches = [make_batch(config, number).to(device) for number in range(INPUT_SETS)]

    def launch(number: int, packs: int = 1) -> LaunchedStep:
        return trainer.launch([batches[(number + pack) % INPUT_SETS] for pack in range(packs)], 1, guard)

    def step(number: int, packs: int = 1) -> None:
        guard.finish(launch(number, packs))

    for number in range(INPUT_SETS):
        step(number)
    free_memory(device)
    link.ready()
    for packs in job.packs:
        count = STEPS // packs
        times = time_steps(lambda number, packs=packs: step(number, packs), count, device)  # type: ignore[misc]
        running = running_ms(lambda number, packs=packs: launch(number, packs), guard, count, device)  # type: ignore[misc]
        waits = host_waits(lambda packs=packs: launch(0, packs), guard, device)  # type: ignore[misc]
        used = [(number + pack) % INPUT_SETS for number in range(count) for pack in range(packs)]
        counts = sum((batches[number].counts for number in used), Counts.zeros())
        link.tell(
            "step",
            **describe(job, packs, trainer.model, times, counts.rows, counts.sequences, step_flops(counts, config)),
            running_ms=running,
            host_waits=waits,
            padding_share=1.0 - counts.rows / counts.padded_rows,
            slots_with_logits_share=counts.filled_slots / counts.rows,
        )
    if job.is_profiled:
        profile = kernel_times(lambda: [step(number) for number in range(2)], device)  # type: ignore[func-returns-value]
        link.tell("kernels", name=f"two steps of {job.name}", **profile)


def measure_peer(job: Job, config: Config, link: Link, device: torch.device) -> None:
    """Steps of torchtitan's Llama of the same shape on the same number of rows, as equal documents.

    Its embedding and unembedding are two weights; it has no moving average.
    """
    sequences = job.sequences
    peer = PeerSteps(config, sequences, config.data.rows_per_pack // sequences, job.uses_fsdp, device)
    for number in range(INPUT_SETS):
        peer.step(number)
    free_memory(device)
    link.ready()
    times = time_steps(peer.step, STEPS, device)
    rows, flops, titan = STEPS * peer.rows, STEPS * peer.flops, peer.titan
    link.tell(
        "step",
        **describe(job, 1, titan.model, times, rows, STEPS * sequences, flops),
        tflops_by_its_own_formula=titan.flops_per_token * rows / times[0] / 1e12,
        padding_share=0.0,
        slots_with_logits_share=1.0,
    )


def describe(
    job: Job, packs: int, model: nn.Module, times: tuple[float, Line], rows: int, documents: int, flops: float
) -> Line:
    """What both sides report of timed steps, which took so many rows, documents and FLOPs together."""
    seconds, line = times
    return {
        "name": job.name.removesuffix(AGAIN),  # rounds of a variant have one name
        "packs": packs,
        "sequences": job.sequences,
        "parameters": num_parameters(model),
        "rows_per_second": rows / seconds,
        "documents_per_second": documents / seconds,
        "tflops": flops / seconds / 1e12,
        "flops_per_document": flops / documents,
        **line,
    }
