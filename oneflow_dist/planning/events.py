"""What a step does, in order: work of the device, what is sent, and where the device waits for that."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

GATHER, SCATTER, REDUCE, BROADCAST = "all_gather", "reduce_scatter", "all_reduce", "broadcast"
SWAP = "all_to_all"
UPDATE = "update"  # the stretch after the last backward pass


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """A kernel, or what one call of a library starts."""

    part: str  # of the program
    operation: str
    num_bytes: int  # read and written
    flops: int


@dataclass(frozen=True, slots=True, order=True)
class Collective:
    """An operation of a group of ranks."""

    kind: str
    group: str  # name of the process group
    num_bytes: int  # of its larger buffer on this rank: what is gathered, what is scattered, what is reduced


@dataclass(frozen=True, slots=True)
class Work:
    """What the device does between two other events: each call, and how often."""

    is_backward: bool
    calls: tuple[tuple[Call, int], ...]


@dataclass(frozen=True, slots=True)
class Send:
    """A collective: one of FSDP's, which the device waits for at an `Await`, or one that it waits for at once."""

    collective: Collective
    is_fsdp: bool


@dataclass(frozen=True, slots=True)
class Await:
    """The device waits for FSDP: for the gather that was sent first, the last scatter, or all that was sent."""

    what: Literal["gather", "scatter", "all"]


Event = Work | Send | Await
Sized = TypeVar("Sized", Call, Collective)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events that come so many times in a step; nothing is under way where one ends."""

    name: str
    times: int
    events: tuple[Event, ...]

    def count(self) -> tuple[Counter[Call], Counter[Collective]]:
        """All calls and collectives of one time."""
        calls: Counter[Call] = Counter()
        collectives: Counter[Collective] = Counter()
        for event in self.events:
            if isinstance(event, Work):
                calls.update(dict(event.calls))
            elif isinstance(event, Send):
                collectives[event.collective] += 1
        return calls, collectives


def joined(events: Iterable[tuple[bool, Call] | Send | Await]) -> tuple[Event, ...]:
    """Calls that follow each other, with whether they are of a backward pass, as one work."""
    found: list[Event] = []
    calls: Counter[Call] = Counter()
    was_backward = False
    for event in [*events, None]:
        if calls and not (isinstance(event, tuple) and event[0] == was_backward):
            found.append(Work(was_backward, tuple(sorted(calls.items()))))
            calls = Counter()
        if isinstance(event, tuple):
            was_backward = event[0]
            calls[event[1]] += 1
        elif event is not None:
            found.append(event)
    return tuple(found)


def without_order(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same where nothing is under way beside anything: all work, then all that is sent."""
    calls, collectives = Stretch("", 1, tuple(events)).count()
    sent = tuple(Send(key, is_fsdp=False) for key in sorted(collectives.elements()))
    return (Work(is_backward=False, calls=tuple(sorted(calls.items()))), *sent)


def with_more_layers(two: Stretch, three: Stretch, more: int) -> Stretch:
    """A stretch of `more` layers than `two` has, which has one less than `three`.

    Layers that are alike stand next to each other: what `three` has more than `two` is repeated, once in the forward
    pass and once in the backward pass. Where nothing has an order, calls of each layer become more, and those of all
    layers larger.
    """
    if two.name == UPDATE:
        (calls, sent), (more_calls, more_sent) = two.count(), three.count()
        extended = Counter({Send(key, False): count for key, count in _grown(sent, more_sent, more).items()})
        work = Work(False, tuple(sorted(_grown(calls, more_calls, more).items())))
        sends = sorted(extended.elements(), key=lambda send: send.collective)
        return dataclasses.replace(two, events=(work, *sends))
    few, some = two.events, three.events
    start, end, first = next(found for kind in (_calls_of, _operations_of) if (found := _place(few, some, kind)))
    longer = len(some) - len(few)
    twins = (*some[:start], *some[start + first : end + first], *some[end + longer :])
    alike = [_grown_event(*pair, more) for pair in zip(few, twins, strict=True)]
    forward, backward = some[start : start + first], some[end + first : end + longer]
    events = (*alike[:start], *forward * more, *alike[start:end], *backward * more, *alike[end:])
    return dataclasses.replace(two, events=events)


def _place(few: Sequence[Event], some: Sequence[Event], kind: Callable[[Event], Any]) -> tuple[int, int, int] | None:
    """Before which events of few some has more, and how many of them at the first place; None if it is not so."""
    ours, theirs = [kind(event) for event in few], [kind(event) for event in some]
    start = _common(ours, theirs)
    end = len(few) - min(_common(ours[::-1], theirs[::-1]), len(few) - start)
    lengths = range(len(some) - len(few) + 1)
    first = next((n for n in lengths if theirs[start + n : end + n] == ours[start:end]), None)
    return None if first is None else (start, end, first)


def _common(few: Sequence[Any], some: Sequence[Any]) -> int:
    """How many are the same at the begin."""
    pairs = enumerate(zip(few, some, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(few), len(some)))


def _calls_of(event: Event) -> Any:
    """What must be the same of events that are alike: all but the sizes of calls."""
    if not isinstance(event, Work):
        return event
    operations: Counter[tuple[str, str]] = Counter()
    for call, count in event.calls:
        operations[call.part, call.operation] += count
    return event.is_backward, operations


def _operations_of(event: Event) -> Any:
    """All but the numbers of calls too, where the work of all layers is one: nothing is gathered between them."""
    if not isinstance(event, Work):
        return event
    return event.is_backward, {(call.part, call.operation) for call, _ in event.calls}


def _grown_event(one: Event, other: Event, more: int) -> Event:
    if not isinstance(one, Work) or not isinstance(other, Work) or one == other:
        return one
    calls = _grown(Counter(dict(one.calls)), Counter(dict(other.calls)), more)
    return dataclasses.replace(one, calls=tuple(sorted(calls.items())))


def _grown(two: Counter[Sized], three: Counter[Sized], more: int) -> Counter[Sized]:
    """Those of each layer become more; one for all layers, as that of the gradient norm, becomes larger."""
    both = two.keys() & three.keys()
    counts = Counter({key: two[key] + more * (three[key] - two[key]) for key in both})
    for small, large in zip(sorted(two.keys() - both), sorted(three.keys() - both), strict=True):
        grown = dataclasses.replace(small, num_bytes=small.num_bytes + more * (large.num_bytes - small.num_bytes))
        if isinstance(grown, Call) and isinstance(small, Call) and isinstance(large, Call):
            grown = dataclasses.replace(grown, flops=small.flops + more * (large.flops - small.flops))
        counts[grown] = two[small]
    return counts
