"""Several ways to compute one thing, timed in turn on the same inputs and compared with float64."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tools.benchmark.link import in_a_line
from tools.benchmark.report import Line
from tools.benchmark.timing import milliseconds_of, peak_gib, reset_peak

Inputs = tuple[Any, ...]
Outputs = Sequence[Tensor]
Call = Callable[[], Outputs]
Prepare = Callable[[Inputs], Call]  # what is not timed: compilation, layouts of the inputs
ROUNDS = 3  # in each all contenders are timed in turn
INPUT_SETS = 3  # which the calls of a contender take in turn, so that it is not a cache that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is computed, on which inputs, and what is right."""

    name: str
    make_inputs: Callable[[int], Inputs]  # from a seed
    contenders: dict[str, Prepare]  # by name, ours first
    flops: float  # of one call
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
    entrants = []
    for number, (name, prepare) in enumerate(case.contenders.items()):
        line = {"case": case.name, "name": name, "is_ours": number == 0}
        try:
            entrants.append(_first_run(line, case, prepare, sets, truth, device))
        except Exception as error:  # noqa: BLE001  out of memory, no kernel, no package: no other contender's business
            entrants.append(Entrant(line | {"failed": in_a_line(error)}, []))
    return entrants


def time_in_turn(case: Case, entrants: Sequence[Entrant], device: torch.device) -> Iterator[Line]:
    """In each round all contenders are timed; a line for each after each, of which the last one counts."""
    yield from (entrant.line for entrant in entrants if not entrant.calls)
    for _ in range(ROUNDS):
        for entrant in entrants:
            if entrant.calls:
                yield _time(case, entrant, device)


def _first_run(
    line: Line, case: Case, prepare: Prepare, sets: list[Inputs], truth: list[Tensor], device: torch.device
) -> Entrant:
    calls = [prepare(inputs) for inputs in sets]
    outputs = calls[0]()
    errors = (
        {  # of each output, the norm of its error relative to its own
            name: float((part.detach().double() - right).norm() / right.norm())
            for name, part, right in zip(case.outputs, case.parts(outputs), truth, strict=True)
        }
        if truth
        else {}
    )
    del outputs
    before = reset_peak(device)
    calls[0]()
    peak = peak_gib(device)
    return Entrant(line | {"errors": errors, "peak_gib": None if peak is None else peak - before}, calls)


def _time(case: Case, entrant: Entrant, device: torch.device) -> Line:
    turns = itertools.cycle(entrant.calls)
    try:
        entrant.milliseconds.append(milliseconds_of(lambda: next(turns)(), device))
    except Exception as error:  # noqa: BLE001  as above
        entrant.calls = []
        return entrant.line | {"failed": in_a_line(error)}
    median = statistics.median(entrant.milliseconds)
    spread = {"least_ms": min(entrant.milliseconds), "most_ms": max(entrant.milliseconds)}
    return entrant.line | {"ms": median, **spread, "tflops": case.flops / median / 1e9}
