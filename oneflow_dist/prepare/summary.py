"""One page about a data set that was prepared: what was found, what was done, what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneflow_dist.prepare.statistics import PERCENTILES, Statistics

BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN = 3  # names of a reason
MOST_LINES = 8  # of changes, and of reasons
MOST_SCRIPTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a folder."""

    source: str
    kind: str  # what it was taken for
    unread: Mapping[str, int]
    num_items: int
    statistics: Statistics
    num_groups: int  # of near duplicates
    num_near: int  # samples in them
    num_dropped: int
    train: Mapping[str, int]  # samples by kind
    held_out: Mapping[str, int]
    pictures: str  # how the model sees them
    vocab_size: int
    capacities: Mapping[str, int]
    padding: float
    next_commands: Sequence[str]


def write_summary(outcome: Outcome) -> str:
    """A page of Markdown that fits on a screen."""
    found = outcome.statistics
    num_bad = sum(map(len, found.problems.values()))
    used = f"{found.num_pictures:,} pictures and {found.num_texts:,} texts"
    lines = [
        f"# {outcome.source}: {outcome.kind}",
        "",
        f"{outcome.num_items:,} items, of which {num_bad:,} have problems; {used} are used",
    ]
    if outcome.unread:
        lines.append(f"- not read: {_counts(outcome.unread)}")
    lines += ["", "## Problems (all in problems.jsonl)", ""] if num_bad else []
    lines += _shorten([_problem(reason, names) for reason, names in found.problems.items()])
    lines += ["", "## What was done", ""] if found.done else []
    lines += _shorten([f"- {count:,} {change}" for change, count in found.done.items()])
    lines += ["", "## What there is", ""]
    lines.append(
        f"- near duplicates: {outcome.num_near:,} samples in {outcome.num_groups:,} groups (duplicates.jsonl), "
        f"{outcome.num_dropped:,} dropped"
    )
    if found.num_pictures:
        aspects = ", ".join(f"{name} {count / found.num_pictures:.0%}" for name, count in found.aspects.items())
        lines += [f"- shorter sides: {draw_histogram(found.sides)}", f"- aspects: {aspects}"]
    if found.tokens:
        ends = ", ".join(f"{value} at {percent} %" for percent, value in zip(PERCENTILES, found.tokens, strict=True))
        letters = found.scripts.total()
        scripts = found.scripts.most_common(MOST_SCRIPTS)
        shares = ", ".join(f"{name} {_percent(count / letters)}" for name, count in scripts)
        lines += [f"- tokens of a text: {ends}", f"- letters: {shares or 'none'}"]
        lines.append(f"- captions that stand at several pictures: {found.repeated:.0%}")
    lines += ["", "## To train on", ""]
    lines.append(f"- train: {_counts(outcome.train)}; held out: {_counts(outcome.held_out) or 'none'}")
    lines.append(f"- {outcome.pictures}; a vocabulary of {outcome.vocab_size:,}")
    capacities = ", ".join(f"{key.rpartition('.')[2]} {value:,}" for key, value in outcome.capacities.items())
    lines.append(f"- capacities: {capacities}; {outcome.padding:.1%} padding")
    lines += ["", *(f"    {command}" for command in outcome.next_commands)]
    return "\n".join(lines) + "\n"


def draw_histogram(counts: Counter[int]) -> str:
    """A block for each power of two, from the smallest that there is to the largest."""
    powers = [1 << bit for bit in range(min(counts).bit_length() - 1, max(counts).bit_length())]
    most = max(counts.values())
    blocks = "".join(
        BLOCKS[-(-counts[power] * (len(BLOCKS) - 1) // most)] if counts[power] else " " for power in powers
    )
    return f"{powers[0]} [{blocks}] {2 * powers[-1] - 1} pixels, doubling"


def _problem(reason: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"- {len(names):,} {reason}: {', '.join(names[:SHOWN])}{more}"


def _shorten(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"- and {rest} more kinds"] if rest > 0 else [])]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{share:.0%}"
