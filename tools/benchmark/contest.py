"""Several ways to compute one thing, timed in turn on the same inputs and compared with float64."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from oneflow_dist.planning.gpus import GIB
from tools.benchmark.link import in_a_line
from tools.benchmark.schedule import Line
from tools.benchmark.timing import milliseconds_of, peak_gib, reset_peak

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


@dataclass(slots=True)
class Entrant:
    """A contender that has run once: what is known of it, its calls, none if it cannot run, and their times."""

    line: Line
    calls: list[Call]
    milliseconds: list[float] = field(default_factory=list)


def enter(case: Case, device: torch.device) -> list[Entrant]:
    """Run every contender once, which compiles it, and compare it with the truth.

    Whatever error one dies of is recorded, in a line, as its result.
    """
    sets = [case.make_inputs(seed) for seed in range(INPUT_SETS)]
    truth = case.truth(sets[0]) if case.truth else []
    return [_first_run(contender, case, sets, truth, device) for contender in case.contenders]


def time_in_turn(case: Case, entrants: Sequence[Entrant], device: torch.device) -> Iterator[Line]:
    """In each round all contenders are timed; a line for each after each, of which the last one counts."""
    yield from (entrant.line for entrant in entrants if not entrant.calls)
    for _ in range(ROUNDS):
        for entrant in entrants:
            if entrant.calls:
                yield _time(case, entrant, device)


def _first_run(
    contender: Contender, case: Case, sets: list[Inputs], truth: list[Tensor], device: torch.device
) -> Entrant:
    line: Line = {"case": case.name, "name": contender.name, "is_ours": contender.is_ours}
    if contender.needs and find_spec(contender.needs) is None:
        return Entrant(line | {"failed": f"{contender.needs} is not installed"}, [])
    try:
        calls = [contender.prepare(inputs) for inputs in sets]
        errors = _errors(case, calls[0](), truth)
        before = reset_peak(device)
        calls[0]()
        peak = peak_gib(device)
    except Exception as error:  # noqa: BLE001  out of memory, no kernel, a compiler's bug: no other contender's business
        return Entrant(line | {"failed": in_a_line(error)}, [])
    return Entrant(line | {"errors": errors, "peak_gib": None if peak is None else peak - before}, calls)


def _errors(case: Case, outputs: Outputs, truth: list[Tensor]) -> dict[str, float]:
    """Of each output, the norm of its error relative to its own."""
    if not truth:
        return {}
    parts = zip(case.outputs, case.parts(outputs), truth, strict=True)
    return {name: float((part.detach().double() - right).norm() / right.norm()) for name, part, right in parts}


def _time(case: Case, entrant: Entrant, device: torch.device) -> Line:
    turns = itertools.cycle(entrant.calls)
    try:
        entrant.milliseconds.append(milliseconds_of(lambda: next(turns)(), device))
    except Exception as error:  # noqa: BLE001  as above
        entrant.calls = []
        return entrant.line | {"failed": in_a_line(error)}
    median = statistics.median(entrant.milliseconds)
    return entrant.line | {
        "ms": median,
        "ms_range": [min(entrant.milliseconds), max(entrant.milliseconds)],
        "tflops": case.flops / median / 1e9 if case.flops else None,
        "gib_per_second": case.num_bytes / GIB / median * 1e3 if case.num_bytes else None,
    }
