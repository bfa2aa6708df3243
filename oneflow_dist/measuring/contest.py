"""Several ways to compute one thing, timed in turn on the same inputs and compared with float64."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from oneflow_dist.measuring.timing import peak_gib, reset_peak, synchronize
from oneflow_dist.planning.gpus import GIB

Inputs = tuple[Any, ...]
Outputs = Sequence[Tensor]
Call = Callable[[], Outputs]
ROUNDS = 3  # in each all contenders are timed in turn
INPUT_SETS = 3  # which the calls of a contender take in turn, so that it is not a cache that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to compute a case."""

    name: str
    prepare: Callable[[Inputs], Call]  # what is not timed: compilation, layouts of the inputs
    is_ours: bool = False
    needs: str = ""  # a package that must be installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is computed, on which inputs, and what is right."""

    name: str
    make_inputs: Callable[[int], Inputs]  # from a seed
    contenders: tuple[Contender, ...]
    flops: float = 0.0  # of one call; 0 where memory is what counts
    num_bytes: float = 0.0  # that must be read and written at least
    outputs: tuple[str, ...] = ()  # names of what a call returns
    parts: Callable[[Outputs], list[Tensor]] = field(default=list)  # what of the outputs is compared with the truth
    truth: Callable[[Inputs], list[Tensor]] | None = None  # the same parts in float64


def run_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Times and errors of all contenders, and the inputs' sizes.

    One that cannot run (its package is not there, it does not compile, its memory does not fit) is recorded with the
    first line of its error; of ours none may fail.
    """
    sets = [case.make_inputs(seed) for seed in range(INPUT_SETS)]
    truth = case.truth(sets[0]) if case.truth else []
    calls: dict[str, list[Call]] = {}
    found: dict[str, dict[str, Any]] = {}
    for contender in case.contenders:
        found[contender.name], calls[contender.name] = _first_run(contender, case, sets, truth, device)
    times: dict[str, list[float]] = {name: [] for name, own in calls.items() if own}
    for _ in range(ROUNDS):
        for name, milliseconds in times.items():
            milliseconds.append(_time(calls[name], device))
    for name, milliseconds in times.items():
        found[name] |= _rates(case, milliseconds)
    return {"name": case.name, "flops": case.flops, "bytes": case.num_bytes, "contenders": list(found.values())}


def _first_run(
    contender: Contender, case: Case, sets: list[Inputs], truth: list[Tensor], device: torch.device
) -> tuple[dict[str, Any], list[Call]]:
    """Its entry with errors and peak memory, and its calls; no calls if it cannot run."""
    entry: dict[str, Any] = {"name": contender.name, "is_ours": contender.is_ours}
    if contender.needs and find_spec(contender.needs) is None:
        return entry | {"failed": f"{contender.needs} is not installed"}, []
    try:
        calls = [contender.prepare(inputs) for inputs in sets]
        outputs = calls[0]()
        errors = _errors(case, outputs, truth)
        del outputs
        before = reset_peak(device)
        calls[0]()
    except RuntimeError as error:  # out of memory, or no kernel for this device: a result, as long as it is a peer's
        if contender.is_ours:
            raise
        return entry | {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}, []
    peak = peak_gib(device)
    return entry | {"errors": errors, "peak_gib": None if peak is None else peak - before}, calls


def _errors(case: Case, outputs: Outputs, truth: list[Tensor]) -> dict[str, float]:
    """Of each output, the norm of its error relative to its own."""
    if not truth:
        return {}
    parts = zip(case.outputs, case.parts(outputs), truth, strict=True)
    return {name: float((part.detach().double() - right).norm() / right.norm()) for name, part, right in parts}


def _time(calls: list[Call], device: torch.device) -> float:
    """Median milliseconds of the calls, taken in turn."""
    turns = itertools.cycle(calls)
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(lambda: next(turns)(), warmup=25, rep=100, return_mode="median"))
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _rates(case: Case, milliseconds: list[float]) -> dict[str, Any]:
    median = statistics.median(milliseconds)
    return {
        "ms": median,
        "ms_range": [min(milliseconds), max(milliseconds)],
        "tflops": case.flops / median / 1e9 if case.flops else None,
        "gib_per_second": case.num_bytes / GIB / median * 1e3 if case.num_bytes else None,
    }
