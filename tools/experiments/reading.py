"""An experiment as a TOML file: its arms, what they are asked, what is claimed, and at which scales it can be made."""

from __future__ import annotations

import importlib.util
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from oneflow_dist.toml import NonNegative, NonNegativeFloat, Positive, check_range, field_ranges, read_tables

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/experiments"
SCALES = ("cpu", "h100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """[scale.NAME] What all arms are trained from."""

    base: str = ""  # a config; "": nothing is trained
    settings: tuple[str, ...] = ()  # section.key=value, of all arms
    hosts: Positive = 1  # of eight GPUs each
    suite: str = ""  # of oneflow evaluate, whose figures take the place of all probes
    figures: tuple[str, ...] = ()  # of the suite, "task/figure"
    ways: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of sampling, each asked by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """[data.NAME] What arms are trained on at the scale of CPUs."""

    file: str  # that is written last
    program: str  # of python, with its arguments, that makes it
    needs: str = ""  # a file that no program of the project makes


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """[arm.NAME] One of the ways that are compared."""

    settings: tuple[str, ...] = ()  # section.key=value, after those of the scale
    cpu: tuple[str, ...] = ()  # the same at this scale alone
    h100: tuple[str, ...] = ()
    variant: str = ""  # of tools/experiments/variants, in place of a part of the method; on CPUs alone
    start: str = ""  # the arm whose weights it begins with, on CPUs; on H100s `h100` may say init.path
    base: str = ""  # a config or a trained model of its own
    h100_base: str = ""  # the same at that scale
    h100_name: str = ""  # what it is called there, where that is another
    is_large: bool = True  # whether it is trained at the scale of H100s
    data: str = ""  # the name of data of its own; where these cannot be made, the arm is left out
    is_trained: bool = True
    is_asked: bool = True  # whether probes look at it, which others may begin with


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """[probe.NAME] What is measured of the arms: `measure` in the module of tools/experiments/probes of this kind."""

    kind: str
    title: str
    arms: tuple[str, ...] = ()  # of these alone
    documents: NonNegative = 0
    kinds: tuple[str, ...] = ()  # of documents, or of whatever the probe has several
    vary: str = ""  # section.key, or what the values mean
    values: tuple[float, ...] = ()
    ways: dict[str, tuple[str, ...]] = field(default_factory=dict)  # settings by name, each measured by itself
    seeds: NonNegative = 0  # so many at most; 0: all that are asked for
    is_log: bool = False  # the axis of the values


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """[figure.NAME] A number that probes give."""

    title: str
    probe: str
    of: str = ""  # as the probe calls it; "": as it is called here
    is_lower_better: bool = False
    is_share: bool = False  # of the probe's documents, each right or not
    spread: NonNegativeFloat = 0.005  # relative: no range is narrower than that of this standard deviation
    data: float = math.nan  # what the data have; nan: there is no such number
    places: Annotated[int, "[0, 6]"] = 3
    is_drawn: bool = True
    is_split: bool = False  # by world, which stands before the comma in the name of a series: a panel and a spread each


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """[claim.NAME] That one number is larger than another, which the seeds show, contradict, or leave open."""

    says: str
    source: str
    larger: str  # "series@x:figure", "series:figure", or a number
    smaller: str  # the same
    by: float = 0.0  # at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A whole file; `name` is that of the file."""

    title: str
    question: str
    method: str
    finding: str  # with numbers as {series@x:figure}
    scale: dict[str, Scale]
    arm: dict[str, Arm]
    probe: dict[str, Probe]
    figure: dict[str, Figure]
    claim: dict[str, Claim]
    data: dict[str, Data] = field(default_factory=dict)
    analysis: str = ""  # a module of tools/experiments/analyses: one more section
    name: str = ""


def load_experiment(name: str) -> Experiment:
    """The experiment of this name in configs/experiments, or of a path.

    Raises:
        ValueError: there is none, or it is not as it should be.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"oneflow experiment {name}: no such experiment; known are {', '.join(known_experiments())}")
    try:
        experiment: Experiment = read_tables(Experiment, tomllib.loads(path.read_text()) | {"name": path.stem})
        check_experiment(experiment)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return experiment


def at_scale(experiment: Experiment, scale: str) -> Experiment:
    """As it is asked at a scale: on H100s a suite takes the place of the probes, and nothing is claimed beforehand."""
    if scale == "cpu":
        return experiment
    own = experiment.scale[scale]
    figures = {name: Figure(title=name, probe="suite", spread=0.02) for name in own.figures}
    return replace(
        experiment,
        arm={own.h100_name or name: own for name, own in experiment.arm.items() if own.is_large and not own.variant},
        probe={"suite": Probe(kind="suite", title=own.suite, kinds=(own.suite, *own.figures), ways=own.ways)}
        if own.suite
        else {},
        figure=figures if own.suite else {},
        claim={},
        finding="",
        analysis="",
        data={},
        name=f"{experiment.name}-{scale}",
    )


def known_experiments() -> list[str]:
    """Names of those in configs/experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def check_experiment(experiment: Experiment) -> None:
    """Names that lead nowhere, and numbers that cannot be.

    Raises:
        ValueError: names the key and what there is.
    """
    tables: dict[str, tuple[Mapping[str, object], type]] = {
        "scale": (experiment.scale, Scale),
        "probe": (experiment.probe, Probe),
        "figure": (experiment.figure, Figure),
    }
    for section, (entries, kind) in tables.items():
        for name, entry in entries.items():
            for key, interval in field_ranges(kind).items():
                check_range(f"{section}.{name}.{key}", getattr(entry, key), interval)
    for scale in SCALES:
        _check_known(f"scale.{scale}", scale, experiment.scale)
    for name, arm in experiment.arm.items():
        if arm.data:
            _check_known(f"arm.{name}.data", arm.data, experiment.data)
        if arm.start:
            _check_known(f"arm.{name}.start", arm.start, experiment.arm)
        if arm.variant and importlib.util.find_spec(f"tools.experiments.variants.{arm.variant}") is None:
            raise ValueError(f"arm.{name}.variant: {arm.variant}: no such module in tools/experiments/variants")
    for name, probe in experiment.probe.items():
        if importlib.util.find_spec(f"tools.experiments.probes.{probe.kind}") is None:
            raise ValueError(f"probe.{name}.kind: {probe.kind}: no such module in tools/experiments/probes")
        for own in probe.arms:
            _check_known(f"probe.{name}.arms", own, experiment.arm)
    if experiment.analysis and importlib.util.find_spec(f"tools.experiments.analyses.{experiment.analysis}") is None:
        raise ValueError(f"analysis: {experiment.analysis}: no such module in tools/experiments/analyses")
    for name, figure in experiment.figure.items():
        _check_known(f"figure.{name}.probe", figure.probe, experiment.probe)
    if not any(figure.is_drawn for figure in experiment.figure.values()) and experiment.probe:
        raise ValueError("figure: none is drawn, so that there is no picture; leave one with is_drawn = true")


def _check_known(key: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise ValueError(f"{key}: there is no {name}; there are {', '.join(known)}")
