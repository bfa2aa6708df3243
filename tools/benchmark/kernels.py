"""All contests between the kernels and their peers, and the fastest launches of the kernels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from oneflow_dist.config import Config
from oneflow_dist.planning.batches import make_batch
from oneflow_kernels.launches import TUNED, device_name, tuned_file
from tools.benchmark import attention_cases, bag_cases
from tools.benchmark.contest import Case, enter, time_in_turn
from tools.benchmark.kernel_times import kernel_times
from tools.benchmark.link import Link

CPU_SCALE = 64  # on a CPU the same programs run on shapes so much smaller


def scale_of(device: torch.device) -> int:
    """How many times smaller things are."""
    return 1 if device.type == "cuda" else CPU_SCALE


def all_cases(config: Config, device: torch.device) -> Iterator[Case]:
    """At a pack of the config as it comes, and at sizes of their own."""
    batch, model, scale = make_batch(config, 0), config.model, scale_of(device)
    heads = model.num_attention_heads, model.num_kv_heads
    yield bag_cases.packed_case(batch, model.width, model.vocab_size, device)
    yield attention_cases.packed_case(batch, heads, model.width // heads[0], device)
    for make in (bag_cases.bag_cases, attention_cases.attention_cases):
        yield from make(device, scale)


def measure_case(case: Case, suffix: str, is_profiled: bool, link: Link, device: torch.device) -> None:
    """Compile all contenders, then time them; the case's name gets a suffix."""
    entrants, name = enter(case, device), case.name + suffix
    link.ready()
    for line in time_in_turn(case, entrants, device):
        link.tell("contender", **line | {"case": name})
    for entrant in entrants:
        if is_profiled and entrant.calls:
            profile = kernel_times(entrant.calls[0], device)
            link.tell("kernels", name=f"{name}: {entrant.line['name']}", **profile)


def measure_launches(kernels: Sequence[str], folder: Path, link: Link, device: torch.device) -> None:
    """Every launch of the kernels whose names begin so; the fastest are used from here on, also by later processes.

    Args:
        folder: gets a copy of the GPU's file, to be committed.
    """
    from oneflow_kernels.tune import compiled_contests, tune  # here: it needs Triton

    compiled = compiled_contests(device, scale_of(device), tuple(kernels))
    path = tuned_file(TUNED, device_name(torch.empty(0, device=device)))
    link.ready()
    for kernel, timed in tune(compiled, device, TUNED):
        shutil.copy(path, folder / f"tuned-{path.name}")
        link.tell("launches", kernel=kernel, milliseconds={str(launch): ms for ms, launch in timed})
