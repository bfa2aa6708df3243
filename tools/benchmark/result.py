"""What a benchmark has measured: as JSON for `compare`, as Markdown for people, and as a picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.files import write_whole
from tools.benchmark.report import Columns, describe, make_table

RESULT, REPORT, PICTURE = "result.json", "report.md", "plot.png"
Series = dict[str, dict[str, list[float]]]  # by what is measured, with its unit; by name; a value for each repetition
PERCENTILES = (10, 50, 90, 99)
STATISTICS: Columns = {name: (name, "") for name in ("mean", *(f"p{percent}" for percent in PERCENTILES), "values")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a command finds out."""

    numbers: dict[str, float | str | None] = field(default_factory=dict)  # None: not known on this machine
    series: Series = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the numbers count


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A file of results; what it is of stands in it, and nothing else of the machine: no environment."""

    command: list[str]
    config: dict[str, Any]  # by section; empty where a command has none
    machine: dict[str, Any]
    measured: Measured

    def write(self, folder: Path) -> None:
        """JSON, Markdown and a picture."""
        from tools.benchmark.drawing import draw_series  # here: it takes a second to import

        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RESULT, (json.dumps(asdict(self), indent=1) + "\n").encode())
        write_whole(folder / REPORT, self.report().encode())
        draw_series(self.measured.series, f"{self.title}\n{describe(self.machine)}").savefig(folder / PICTURE)

    @property
    def title(self) -> str:
        return shlex.join(self.command)

    def report(self) -> str:
        """All of it in tables."""
        measured = self.measured
        numbers = [{"name": name, "value": written(value)} for name, value in measured.numbers.items()]
        parts = [f"# {self.title}", describe(self.machine), *measured.notes]
        parts += [make_table("", {"": ("value", "")}, numbers)] if numbers else []
        return "\n\n".join([*parts, *_tables(measured.series)]) + "\n"


def read_result(path: Path) -> Result:
    """A result from its file, or from its folder.

    Raises:
        ValueError: it is none.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        content = json.loads(path.read_bytes())
        return Result(**content | {"measured": Measured(**content["measured"])})
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path}: no result of tools.benchmark ({error}); name a file or folder that it wrote"
        ) from None


def written(value: float | str | None) -> str:
    """A number with four digits, or all of those before the point."""
    if value is None:
        return "not known here"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tables(series: Series) -> list[str]:
    """A table of statistics for each; of those with one value each, one table with a column for each."""
    is_single = {title: all(len(values) == 1 for values in named.values()) for title, named in series.items()}
    side_by_side: dict[tuple[str, ...], Series] = {}  # by their names
    for title, named in series.items():
        if is_single[title]:
            side_by_side.setdefault(tuple(named), {})[title] = named
    parts = [_columns(names, group) for names, group in side_by_side.items()]
    return parts + [f"## {title}\n\n{_statistics(named)}" for title, named in series.items() if not is_single[title]]


def _columns(names: Sequence[str], group: Series) -> str:
    lines = [{"name": name, **{title: written(named[name][0]) for title, named in group.items()}} for name in names]
    return make_table("", {title: (title, "") for title in group}, lines)


def _statistics(named: Mapping[str, Sequence[float]]) -> str:
    lines = [
        {"name": name, "mean": written(float(np.mean(values))), "values": str(len(values))}
        | {f"p{percent}": written(float(np.percentile(values, percent))) for percent in PERCENTILES}
        for name, values in named.items()
        if values
    ]
    return make_table("", STATISTICS, lines)
