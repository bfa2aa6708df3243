"""All that has been measured of an experiment, as points with their estimates."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from oneflow_dist.files import write_whole
from tools.experiments.estimates import Estimate, estimate
from tools.experiments.plan import Task
from tools.experiments.reading import Experiment

RESULTS = "results.jsonl"  # what follows the name of an experiment


class Point(NamedTuple):
    """Where a figure was measured."""

    series: str  # an arm, or one of its ways
    x: float | None

    def __str__(self) -> str:
        return self.series if self.x is None else f"{self.series}@{self.x:g}"


@dataclass(frozen=True)
class Results:
    """Of an experiment at a scale."""

    experiment: Experiment
    measured: tuple[dict[str, Any], ...]  # what tasks have written

    @cached_property
    def values(self) -> dict[str, dict[Point, list[float]]]:
        """By figure and point, those of all seeds; arms, ways and values in the order of the file."""
        found: dict[str, dict[Point, list[float]]] = {figure: defaultdict(list) for figure in self.experiment.figure}
        order, called = list(self.experiment.arm), {}
        for name, own in self.experiment.figure.items():
            called[own.probe, own.of or name] = name
        for result in sorted(self.measured, key=lambda result: (order.index(result["arm"]), result["seed"])):
            for probe, (way, x, figure, value) in result["rows"]:
                if (probe, figure) in called:
                    found[called[probe, figure]][Point(series_of(self.experiment, result["arm"], way), x)].append(value)
        return found

    @cached_property
    def estimates(self) -> dict[str, dict[Point, Estimate]]:
        """By figure and point."""
        found = {}
        for name, values in self.values.items():
            figure = self.experiment.figure[name]
            documents = self.experiment.probe[figure.probe].documents
            own = estimate({str(point): seeds for point, seeds in values.items()}, figure, documents)
            found[name] = dict(zip(values, own.values(), strict=True))
        return found

    @property
    def seeds(self) -> list[int]:
        """Of which something was measured."""
        return sorted({result["seed"] for result in self.measured})

    def at(self, key: str) -> Estimate:
        """The number of "series@x:figure".

        Raises:
            ValueError: there is none.
        """
        where, _, figure = key.rpartition(":")
        points = {str(point): own for point, own in self.estimates.get(figure, {}).items()}
        if where not in points:
            known = ", ".join(points) or f"figures {', '.join(self.experiment.figure)}"
            raise ValueError(f"experiment {self.experiment.name}: no number {key}; known are {known}")
        return points[where]


def series_of(experiment: Experiment, arm: str, way: str) -> str:
    """The name of an arm's way; of the arm alone where it has one, of the way alone where there is one arm."""
    arms = [name for name, own in experiment.arm.items() if own.is_asked]
    if not way:
        return arm
    return way if len(arms) == 1 else f"{arm}, {way}"


def read_results(experiment: Experiment, tasks: Sequence[Task]) -> Results:
    """What finished tasks have written."""
    own = [task.path for task in tasks if task.experiment.name == experiment.name and task.path.exists()]
    return Results(experiment, tuple(json.loads(path.read_text()) | {"task": path.stem} for path in own))


def take_in(experiment: Experiment, folder: Path, runs: Path) -> int:
    """Put the results of others, as `save_results` writes them, among those of a folder of runs; how many are new."""
    path, count = folder / f"{experiment.name}.{RESULTS}", 0
    for result in load_results(experiment, path).measured if path.exists() else ():
        place = runs / "measured" / experiment.name / f"{result['task']}.json"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, json.dumps(result).encode())
            count += 1
    return count


def load_results(experiment: Experiment, path: Path) -> Results:
    """What `save_results` has written.

    Raises:
        ValueError: it is not there, or damaged.
    """
    try:
        return Results(experiment, tuple(json.loads(line) for line in path.read_text().splitlines()))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is not there; name a folder with results of oneflow experiment") from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); take it from git again") from error


def save_results(results: Results, path: Path) -> None:
    """A line for each arm and seed, with all its rows."""
    path.write_text("".join(json.dumps(result) + "\n" for result in results.measured))
