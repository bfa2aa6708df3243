"""All that has been measured of an experiment, as points with their estimates."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneflow_dist.files import write_whole
from tools.experiments.estimates import (
    Difference,
    Estimate,
    common_variance,
    difference,
    estimate,
    paired_difference,
)
from tools.experiments.plan import Task
from tools.experiments.reading import Experiment, Figure


class Point(NamedTuple):
    """Where a figure was measured."""

    series: str  # an arm, or one of its ways
    x: float | None

    def __str__(self) -> str:
        return self.series if self.x is None else f"{self.series}@{self.x:g}"

    def world(self, figure: Figure) -> str:
        """What stands before the comma in its series, where worlds are kept apart; else ""."""
        return self.series.partition(", ")[0] if figure.is_split else ""


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
        """By figure and point; worlds that have panels of their own are not alike."""
        return {name: self._estimate(name) for name in self.experiment.figure}

    def _estimate(self, name: str) -> dict[Point, Estimate]:
        figure = self.experiment.figure[name]
        found: dict[Point, Estimate] = {}
        documents = self.experiment.probe[figure.probe].documents
        for world in dict.fromkeys(point.world(figure) for point in self.values[name]):
            own = {point: seeds for point, seeds in self.values[name].items() if point.world(figure) == world}
            of_world = estimate({str(point): seeds for point, seeds in own.items()}, figure, documents)
            found |= dict(zip(own, of_world.values(), strict=True))
        return {point: found[point] for point in self.values[name]}

    @property
    def seeds(self) -> list[int]:
        """Of which something was measured."""
        return sorted({result["seed"] for result in self.measured})

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Arms with data of their own of which nothing was measured: nobody could make these."""
        measured = {result["arm"] for result in self.measured}
        return tuple(arm for arm, own in self.experiment.arm.items() if own.data and arm not in measured)

    def is_left_out(self, key: str) -> bool:
        """Whether "series@x:figure" is a number of such an arm."""
        series = key.rpartition(":")[0].partition("@")[0]
        return any(series == arm or series.startswith(f"{arm}, ") for arm in self.left_out)

    def at(self, key: str) -> Estimate:
        """The number of "series@x:figure".

        Raises:
            ValueError: there is none.
        """
        figure, point = self.find(key)
        return self.estimates[figure][point]

    def find(self, key: str) -> tuple[str, Point]:
        """The figure and the point of "series@x:figure".

        Raises:
            ValueError: there is no such number.
        """
        where, _, figure = key.rpartition(":")
        points = {str(point): point for point in self.values.get(figure, {})}
        if where not in points:
            known = ", ".join(points) or f"figures {', '.join(self.experiment.figure)}"
            raise ValueError(f"experiment {self.experiment.name}: no number {key}; known are {known}")
        return figure, points[where]

    def compare(self, larger: str, smaller: str) -> Difference:
        """Of two numbers; seed by seed where both have the same ones, several."""
        ours, theirs = self.find(larger), self.find(smaller)
        pairs = list(zip(self.values[ours[0]][ours[1]], self.values[theirs[0]][theirs[1]], strict=False))
        one, other = self.at(larger), self.at(smaller)
        if not 1 < one.seeds == other.seeds:
            return difference(one, other)
        return paired_difference(pairs, self._usual(ours[0], ours[1]), (one.floor**2 + other.floor**2) ** 0.5)

    def _usual(self, name: str, point: Point) -> float:
        """The variance that differences of two points of a figure have, of the same world and as many seeds."""
        figure, seeds = self.experiment.figure[name], len(self.values[name][point])
        alike = [
            np.array(own)
            for other, own in self.values[name].items()
            if len(own) == seeds and other.world(figure) == point.world(figure)
        ]
        found = {str(n): float(np.var(a - b, ddof=1)) for n, (a, b) in enumerate(itertools.combinations(alike, 2))}
        return common_variance(found, dict.fromkeys(found, seeds - 1))


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


def results_path(folder: Path, name: str) -> Path:
    """Where the results of an experiment lie among pages."""
    return folder / f"{name}.results.jsonl"


def take_in(experiment: Experiment, folder: Path, runs: Path) -> int:
    """Put the results of others, as `save_results` writes them, among those of a folder of runs; how many are new."""
    path, count = results_path(folder, experiment.name), 0
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
