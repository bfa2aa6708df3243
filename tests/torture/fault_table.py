"""What tests/torture/faults.py has seen, as a table, a file of numbers and a picture.

    python tests/torture/fault_table.py scratch/faults.jsonl docs/results/faults.json

The picture lies beside the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from oneflow_dist.runtime import run_program
from tests.torture.faults import Outcome, read_outcomes

COLUMNS = "| event | runs | as it should | what the run did | seconds until then: median | worst |"
INK, DOT, BAD = "#222222", "#3b6fb6", "#c0392b"
SECONDS = (0, 1, 3, 10, 30, 100)  # that the axis is marked at


@dataclasses.dataclass(frozen=True)
class Row:
    """All runs of one fault."""

    fault: str
    outcomes: Sequence[Outcome]

    @property
    def right(self) -> list[Outcome]:
        """The runs that did what they should."""
        return [outcome for outcome in self.outcomes if not outcome.wrong]

    @property
    def seconds(self) -> list[float]:
        """Of each run that did what it should."""
        return [outcome.seconds for outcome in self.right]

    def __str__(self) -> str:
        did = Counter(outcome.did for outcome in self.right).most_common(1)[0][0] if self.right else ""
        median, worst = (
            (f"{statistics.median(self.seconds):.1f}", f"{max(self.seconds):.1f}") if self.right else ("", "")
        )
        return f"| {self.fault} | {len(self.outcomes)} | {len(self.right)} | {did} | {median} | {worst} |"


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each fault, in the order of their first runs."""
    faults = dict.fromkeys(outcome.fault for outcome in outcomes)
    return [Row(fault, [outcome for outcome in outcomes if outcome.fault == fault]) for fault in faults]


def draw(rows: Sequence[Row]) -> Figure:
    """The seconds of every run, on a line for each fault, and their median."""
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        for number, outcome in enumerate(row.outcomes):
            colour, height = (BAD, 40) if outcome.wrong else (DOT, 18)
            axes.scatter(outcome.seconds, place + 0.25 * (number % 5 - 2) / 2, height, colour, alpha=0.6, linewidths=0)
        if row.right:
            axes.plot([statistics.median(row.seconds)] * 2, [place - 0.35, place + 0.35], color=INK, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [row.fault for row in reversed(rows)])
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=-0.05)
    axes.set_xticks(SECONDS, [str(seconds) for seconds in SECONDS])
    axes.set_xlabel("seconds until the run was further than before,\nhad said what is wrong, or had ended")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outcomes", type=Path, help="faults.jsonl")
    parser.add_argument("numbers", type=Path, help="a .json to write; the picture is a .png beside it")
    args = parser.parse_args()
    outcomes = read_outcomes(args.outcomes)
    if not outcomes:
        raise ValueError(f"{args.outcomes}: holds no outcomes; run tests/torture/faults.py first")
    rows = rows_of(outcomes)
    args.numbers.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(outcome)) for outcome in outcomes]
    args.numbers.write_text("[\n " + ",\n ".join(lines) + "\n]\n")
    draw(rows).savefig(args.numbers.with_suffix(".png"))
    print(COLUMNS, "| --- " * 6 + "|", *rows, sep="\n")
    for outcome in (outcome for outcome in outcomes if outcome.wrong):
        print(f"{outcome.fault} {outcome.number}: {'; '.join(outcome.wrong)}")


if __name__ == "__main__":
    run_program(main)
