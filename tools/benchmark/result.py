"""What a benchmark has measured: as JSON for `compare`, as Markdown for people, and as a picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneflow_dist.files import write_whole
from tools.benchmark.report import Columns, describe, make_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    options: dict[str, Any]  # of the command, by name
    config: dict[str, Any]  # by section; empty where a command has none
    machine: dict[str, Any]
    measured: Measured

    def write(self, folder: Path, picture: Figure) -> None:
        """JSON, Markdown and a picture."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RESULT, (json.dumps(asdict(self), indent=1) + "\n").encode())
        write_whole(folder / REPORT, self.report().encode())
        picture.savefig(folder / PICTURE)

    @property
    def title(self) -> str:
        return shlex.join(self.command)

    def describe(self) -> str:
        """Its command and its machine."""
        return f"{self.title}: {describe(self.machine)}"

    def report(self) -> str:
        """All of it in tables."""
        measured = self.measured
        numbers = [{"name": name, "value": written(value)} for name, value in measured.numbers.items()]
        parts = [f"# {self.title}", describe(self.machine), *measured.notes]
        parts += [make_table("", {"": ("value", "")}, numbers)] if numbers else []
        return "\n\n".join([*parts, *_tables(measured.series)]) + "\n"


def read_results(path: Path) -> list[Result]:
    """That of a file or a folder, or those of the folders in it: runs of one command.

    Raises:
        ValueError: there is none, or one is none.
    """
    files = [path] if path.is_file() else sorted([*path.glob(RESULT), *path.glob(f"*/{RESULT}")])
    if not files:
        raise ValueError(f"{path}: no {RESULT} here or in its folders; name a folder that tools.benchmark has written")
    return [read_result(file) for file in files]


def read_result(path: Path) -> Result:
    """A result from its file.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
        return Result(**content | {"measured": Measured(**content["measured"])})
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: no result of tools.benchmark ({error}); name one that it wrote") from None


def written(value: float | str | None) -> str:
    """A number with four digits, or all of those before the point."""
    if value is None:
        return "not known here"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def side_by_side(series: Series) -> dict[tuple[str, ...], Series]:
    """Those with one value each, by their names."""
    groups: dict[tuple[str, ...], Series] = {}
    for title, named in series.items():
        if all(len(values) == 1 for values in named.values()):
            groups.setdefault(tuple(named), {})[title] = named
    return groups


def _tables(series: Series) -> list[str]:
    """A table of statistics for each; of those with one value each, a table for all of the same names."""
    groups = side_by_side(series)
    parts = [_columns(names, group) for names, group in groups.items()]
    repeated = {title: named for title, named in series.items() if title not in groups.get(tuple(named), {})}
    return parts + [f"## {title}\n\n{_statistics(named)}" for title, named in repeated.items()]


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
