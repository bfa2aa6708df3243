"""When a device computes, when its links send, and when one waits for the other."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from oneflow_dist.planning.cluster import Cluster, MeshShape, group_span, link_seconds
from oneflow_dist.planning.events import GATHER, REDUCE, UPDATE, Await, Call, Collective, Event, Send, Stretch, Work

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Bar:
    """A lane is busy from one moment to another, seconds from the begin."""

    lane: str  # DEVICE, or a mesh axis
    what: str  # forward, backward or update; of an axis, the kind of collective
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Wait:
    """The device is idle because of an axis."""

    lane: str
    start: float
    end: float


@dataclass(slots=True)
class Timeline:
    """The lanes of one or more stretches, one after the other."""

    bars: list[Bar] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    seconds: float = 0.0
    compute: float = 0.0  # seconds in which the device computes
    # Seconds of each axis, and of them those in which the device waits.
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    exposed: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(slots=True)
class _Lanes:
    """Where everybody is, while events are laid out in the order in which the host launches them.

    A link sends one thing after the other, in the order of their launch. FSDP2 sends on streams of its own: a gather
    may begin as soon as the device has begun with what was gathered before (the host is ahead of it, so this is the
    prefetch of the next block, in both directions); a scatter, and the sum over copies after it, once the device comes
    to it. The device waits for a gather before it uses it, for the scatter of one block before it fills the buffer of
    the next, and for all at the end of a backward pass. For other collectives it waits at once; with asynchronous
    tensor parallelism these go on beside the product that needs or made what is sent, all but the first of the pieces
    that it is cut into.
    """

    seconds: Callable[[Collective], float]
    sizes: Callable[[str], int]
    is_async: bool
    now: float = 0.0
    launched: float = 0.0  # when the device came to the last gathered weights
    product: float = 0.0  # seconds of the work before
    due: float = 0.0  # until when an asynchronous collective takes
    due_lane: str = ""
    free: dict[str, float] = field(default_factory=dict)
    gathers: deque[tuple[str, float]] = field(default_factory=deque)
    scatter: tuple[str, float] | None = None
    pending: list[tuple[str, float]] = field(default_factory=list)
    out: Timeline = field(default_factory=Timeline)

    def work(self, seconds: float, what: str) -> None:
        self.out.bars.append(Bar(DEVICE, what, self.now, self.now + seconds))
        self.out.compute += seconds
        self.now += seconds
        self.product = seconds
        if self.due_lane:
            self.wait(self.due_lane, self.due)
            self.due_lane = ""

    def wait(self, lane: str, until: float) -> None:
        if until > self.now:
            self.out.waits.append(Wait(lane, self.now, until))
            self.out.exposed[lane] += until - self.now
            self.now = until

    def send(self, collective: Collective, earliest: float) -> float:
        lane, seconds = collective.group, self.seconds(collective)
        start = max(earliest, self.free.get(lane, 0.0))
        self.free[lane] = start + seconds
        self.out.bars.append(Bar(lane, collective.kind, start, start + seconds))
        self.out.busy[lane] += seconds
        return start + seconds

    def send_fsdp(self, collective: Collective) -> None:
        lane = collective.group
        if collective.kind == GATHER:
            self.gathers.append((lane, self.send(collective, self.launched)))
            return
        after = self.scatter[1] if collective.kind == REDUCE and self.scatter else 0.0
        sent = lane, self.send(collective, max(self.now, after))
        self.pending.append(sent)
        if collective.kind != REDUCE:
            self.scatter = sent

    def send_inline(self, collective: Collective) -> None:
        lane = collective.group
        if not (self.is_async and lane == "tensor"):
            self.wait(lane, self.send(collective, self.now))
            return
        piece = self.seconds(collective) / self.sizes(lane)
        if collective.kind == GATHER:  # beside the product that follows
            self.wait(lane, self.now + piece)
            self.due, self.due_lane = self.send(collective, self.now - piece), lane
        else:  # beside the product before
            end = self.send(collective, self.now - self.product)
            self.wait(lane, max(end, self.now + piece))

    def wait_for(self, what: str) -> None:
        if what == "gather":
            if self.gathers:
                self.wait(*self.gathers.popleft())
            self.launched = self.now
        elif what == "scatter" and self.scatter is not None:
            self.wait(*self.scatter)
        elif what == "all":
            for lane, end in sorted(self.pending, key=lambda sent: sent[1]):
                self.wait(lane, end)
            self.pending, self.scatter = [], None


def lay_out(
    stretches: Sequence[Stretch], mesh: MeshShape, cluster: Cluster, price: Callable[[Call], float], is_async: bool
) -> Timeline:
    """The lanes of stretches, each once, whatever their `times`."""

    def seconds(collective: Collective) -> float:
        return link_seconds(collective, mesh, cluster)

    def size(group: str) -> int:
        return group_span(group, mesh)[0]

    whole = Timeline()
    for stretch in stretches:
        lanes = _Lanes(seconds, size, is_async)
        for event in stretch.events:
            _add(lanes, event, stretch.name, price)
        _append(whole, lanes.out, lanes.now)
    return whole


def _add(lanes: _Lanes, event: Event, name: str, price: Callable[[Call], float]) -> None:
    if isinstance(event, Work):
        what = name if name == UPDATE else "backward" if event.is_backward else "forward"
        lanes.work(sum(count * price(call) for call, count in event.calls), what)
    elif isinstance(event, Await):
        lanes.wait_for(event.what)
    elif isinstance(event, Send) and event.is_fsdp:
        lanes.send_fsdp(event.collective)
    else:
        lanes.send_inline(event.collective)


def _append(whole: Timeline, part: Timeline, seconds: float) -> None:
    begin = whole.seconds
    whole.bars += [Bar(bar.lane, bar.what, begin + bar.start, begin + bar.end) for bar in part.bars]
    whole.waits += [Wait(wait.lane, begin + wait.start, begin + wait.end) for wait in part.waits]
    whole.seconds += seconds
    whole.compute += part.compute
    for total, own in ((whole.busy, part.busy), (whole.exposed, part.exposed)):
        for lane, value in own.items():
            total[lane] += value
