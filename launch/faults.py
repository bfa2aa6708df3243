"""What is wrong with which node, and whether that is the node's fault or its user's."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from oneflow_dist.files import describe_os_error

Blame = Literal["node", "user", "either"]
CLOCK_SECONDS = 60.0  # between two nodes
# A rank is slow below this part of the median. Processors are shared with other processes, which take their time.
SLOW_COMPUTE = {"cuda": 0.7, "cpu": 0.3}
SLOW_LINK = {"cuda": 0.5, "cpu": 0.25}
LEAST_LINK = {"cuda": 5e7, "cpu": 1e6}  # bytes per second of a rank; with less, steps take minutes
ADVICE = {  # by what all nodes must share
    "code": "bring its checkout to the same commit",
    "config": "give all nodes the same config and overrides",
    "torch": "install the same version",
    "driver": "install the same one",
    "device": "find out why",
    "ranks per node": "start as many on each node",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a node.

    Of `blame`: "either" is the node's fault where fewer than half of the nodes have it. What half of them have, as data
    that are nowhere, the user can mend and no other nodes would.
    """

    node: str
    blame: Blame
    kind: str
    text: str  # what is wrong, with the value; what to do


@dataclass
class Report:
    """What one rank has seen; the first of each node looks at the node for all of them."""

    node: str
    node_rank: int
    local_rank: int
    device: str  # "cuda" or "cpu"
    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # those of ADVICE
    room: str = ""
    clock: float = 0.0  # seconds, read by all ranks in the same instant
    compute: float = 0.0  # FLOPs per second; 0: not measured
    within: float = 0.0  # bytes per second in an all-reduce among the ranks of the node; 0: not measured
    between: list[float] = field(default_factory=list)  # bytes per second, to and from each neighbour

    def note(self, kind: str, blame: Blame, text: str) -> None:
        """Add a fault."""
        self.faults.append(Fault(self.node, blame, kind, " ".join(text.split())))

    @contextmanager
    def noting(self, kind: str, blame: Blame) -> Iterator[None]:
        """Inside, an error is a fault; nothing there waits for another rank."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            self.note(kind, blame, describe_os_error(error) if isinstance(error, OSError) else str(error))


def ranks_of_nodes(reports: Sequence[Report]) -> list[list[int]]:
    """The ranks of each node, in the order of their local ranks."""
    nodes: dict[int, list[int]] = {}
    for rank, report in enumerate(reports):
        nodes.setdefault(report.node_rank, []).append(rank)
    return [nodes[number] for number in sorted(nodes)]


def judge_nodes(reports: Sequence[Report]) -> list[Fault]:
    """What ranks have seen, and what shows in a comparison of them alone."""
    first = [report for report in reports if report.local_rank == 0]
    faults = [fault for report in reports for fault in report.faults]
    faults += [*_compare_facts(first), *_compare_clocks(first)]
    for device, part in SLOW_COMPUTE.items():
        rates = [(report, report.compute) for report in reports if report.device == device and report.compute]
        faults += _find_slow("computes", rates, part, "FLOP/s", "end what else runs there, look after its cooling")
    return faults


def judge_links(reports: Sequence[Report]) -> list[Fault]:
    """Whose links are slow; of two nodes nobody knows which.

    A slow node makes two links slow, but its neighbours have another each: what counts is the better one.
    """
    if len(ranks_of_nodes(reports)) < 3:
        return _find_useless(reports)
    part = SLOW_LINK[reports[0].device]
    within = [(report, report.within) for report in reports if report.local_rank == 0]
    between = [(report, max(report.between)) for report in reports]
    faults = [
        *_find_slow("sends within its node", within, part, "B/s", "see nvidia-smi nvlink --status"),
        *_find_slow("sends to other nodes", between, part, "B/s", "look after its network card and cable"),
    ]
    return faults or _find_useless(reports)


def _find_useless(reports: Sequence[Report]) -> list[Fault]:
    """Whose links are too slow for any training, all of them perhaps."""
    least = LEAST_LINK[reports[0].device]
    slow = [report for report in reports if report.between and max(report.between) < least]
    if not slow:
        return []
    slowest = show(min(max(report.between) for report in slow), "B/s")
    text = f"links between nodes carry {slowest} of a rank, and training needs {show(least, 'B/s')} and more"
    nodes, advice = dict.fromkeys(report.node for report in slow), "look after cables, switch and GLOO_SOCKET_IFNAME"
    return [Fault(node, "either", "useless link", f"{text}; {advice}") for node in nodes]


def _compare_facts(first: Sequence[Report]) -> list[Fault]:
    """Who differs from most nodes in what all must share; where no value is that of most, from the first node."""
    faults = []
    for kind, advice in ADVICE.items():
        values = [(report.node, report.facts[kind]) for report in first if kind in report.facts]
        for node, value in values:
            usual = Counter(value for _, value in values).most_common(1)[0][0]
            if value != usual:
                other = next(name for name, theirs in values if theirs == usual)
                faults.append(Fault(node, "either", kind, f"{kind}: {value}, but {usual} on {other}; {advice}"))
    return faults


def _compare_clocks(first: Sequence[Report]) -> list[Fault]:
    """Who is more than CLOCK_SECONDS off the clock in the middle."""
    usual = statistics.median_low(report.clock for report in first)
    other = next(report.node for report in first if report.clock == usual)
    faults = []
    for report in first:
        ahead = report.clock - usual
        if abs(ahead) > CLOCK_SECONDS:
            side = "ahead of" if ahead > 0 else "behind"
            text = f"its clock is {abs(ahead):.0f} s {side} that of {other}; set it, as by chronyc makestep"
            faults.append(Fault(report.node, "either", "clock", text))
    return faults


def _find_slow(does: str, rates: Sequence[tuple[Report, float]], part: float, unit: str, advice: str) -> list[Fault]:
    """Whose rate is below this part of the median."""
    usual = statistics.median([rate for _, rate in rates] or [0.0])
    return [
        Fault(
            report.node,
            "node",
            does,
            f"its {report.device} {report.local_rank} {does} at {show(rate, unit)}, half of all ranks at "
            f"{show(usual, unit)} and more; {advice}",
        )
        for report, rate in rates
        if rate < part * usual
    ]


def show(rate: float, unit: str) -> str:
    """Three digits and a prefix: "42.1 GB/s"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if rate >= size:
            return f"{rate / size:.3g} {prefix}{unit}"
    return f"{rate / 1e3:.3g} k{unit}"


def split_blame(faults: Sequence[Fault], num_nodes: int) -> tuple[list[Fault], list[Fault]]:
    """The faults of nodes, and those of the user."""
    having = Counter(kind for kind, _ in {(fault.kind, fault.node) for fault in faults})
    broken = {fault.node for fault in faults if fault.blame == "node"}  # whatever else it has may come of that
    of_nodes = [
        fault
        for fault in faults
        if fault.node in broken or (fault.blame == "either" and 2 * having[fault.kind] < num_nodes)
    ]
    return of_nodes, [fault for fault in faults if fault not in of_nodes]


def describe_faults(faults: Sequence[Fault]) -> list[str]:
    """A line for each; nodes that have the same share a line."""
    nodes: dict[str, list[str]] = {}
    for fault in faults:
        nodes.setdefault(fault.text, []).append(fault.node)
    return [f"{name_nodes(names)}: {text}" for text, names in nodes.items()]


def name_nodes(names: Sequence[str]) -> str:
    """Names of nodes, each once, in a few words."""
    names = list(dict.fromkeys(names))
    few = names if len(names) <= 5 else names[:4]
    return ", ".join(few) + (f" and {len(names) - 4} more" if len(names) > 5 else "")


def describe_fit(reports: Sequence[Report]) -> str:
    """What was measured of nodes that are fit, in a line: of each kind the slowest."""
    nodes = ranks_of_nodes(reports)
    parts = [
        f"{len(nodes)} node{'s' * (len(nodes) > 1)} x {len(nodes[0])} {reports[0].device} fit",
        f"the slowest computes with {show(min(report.compute for report in reports), 'FLOP/s')}",
    ]
    within = [report.within for report in reports if report.within]
    between = [max(report.between) for report in reports if report.between]
    parts += [f"links within a node from {show(min(within), 'B/s')}"] if within else []
    parts += [f"between nodes from {show(min(between), 'B/s')}"] if between else []
    return ", ".join([*parts, reports[0].room])
