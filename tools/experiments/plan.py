"""Which runs an experiment needs, and what is measured of each; arms with one config share a run, of any experiment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.config import Config, load_config, write_config
from tools.experiments.reading import ROOT, Arm, Experiment, Probe, Scale

# Of every run on a CPU: in one process, held-out losses only where an arm asks, one checkpoint at the end.
GPUS = 8  # of a host
CPU = ("data.workers=0", "metrics.tensorboard=false", "sampling.every_steps=0", "checkpoint.keep=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training, made or to be made."""

    base: Path
    settings: tuple[str, ...]
    seed: int
    variant: str
    start: Run | None
    folder: Path  # named by what makes the run what it is
    hosts: int  # that it needs, of eight GPUs each; 0: this machine's cores

    @property
    def overrides(self) -> tuple[str, ...]:
        """All that its config has otherwise than the file."""
        start = () if self.start is None else (f"init.path={self.start.folder}",)
        return (*self.settings, *start, f"run.seed={self.seed}", f"run.folder={self.folder}")

    @property
    def config(self) -> Config:
        """The whole of it.

        Raises:
            ValueError: it cannot be.
        """
        return load_config(self.base, list(self.overrides))

    @property
    def log(self) -> Path:
        """Where its programs print."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An arm of an experiment with a seed: to be trained, if it has not been, and measured."""

    experiment: Experiment
    arm: str
    seed: int
    run: Run | None  # None: there is nothing to train
    model: Path  # that is looked at, where it exists
    scale: str
    source: str  # the experiment's file, or its name
    runs: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.experiment.name}, {self.arm}, seed {self.seed}"

    @property
    def probes(self) -> dict[str, Probe]:
        """Those that look at this arm, with this seed."""
        return probes_of(self.experiment, self.arm, self.seed)

    @property
    def path(self) -> Path:
        """Of its result, named by all that it depends on."""
        what = json.dumps({name: dataclasses.asdict(probe) for name, probe in self.probes.items()}, sort_keys=True)
        arm = self.experiment.arm[self.arm]
        model = self.run.folder.name if self.run is not None else Path(arm.base).name
        own = short_hash(what, model, arm.variant, self.scale)
        return self.runs / "measured" / self.experiment.name / f"{slug(self.arm)}-{self.seed}-{own}.json"

    @property
    def log(self) -> Path:
        """Where its probes print."""
        return self.path.with_suffix(".log")


def probes_of(experiment: Experiment, arm: str, seed: int) -> dict[str, Probe]:
    """Those that look at an arm, with a seed."""
    if not experiment.arm[arm].is_asked:
        return {}
    return {
        name: probe
        for name, probe in experiment.probe.items()
        if (not probe.arms or arm in probe.arms) and (not probe.seeds or seed < probe.seeds)
    }


def plan_tasks(experiments: dict[str, Experiment], scale: str, seeds: int, runs: Path) -> list[Task]:
    """All that is to be measured, seed by seed: whoever stops has the same of every arm.

    Args:
        experiments: as they are at this scale, by the name or file that was asked for.

    Raises:
        ValueError: the config of an arm cannot be.
    """
    tasks = []
    for seed in range(seeds):
        for source, experiment in experiments.items():
            for name in experiment.arm:
                run = run_of(experiment, name, scale, seed, runs)
                if probes_of(experiment, name, seed):
                    model = run.folder if run is not None else ROOT / experiment.arm[name].base
                    own = Task(
                        experiment=experiment,
                        arm=name,
                        seed=seed,
                        run=run,
                        model=model,
                        scale=scale,
                        source=source,
                        runs=runs,
                    )
                    tasks.append(own)
    return tasks


def run_of(experiment: Experiment, arm: str, scale: str, seed: int, runs: Path) -> Run | None:
    """The training of an arm; None where there is none.

    Raises:
        ValueError: its config cannot be.
    """
    own, common = experiment.arm[arm], experiment.scale[scale]
    base = (own.base if scale == "cpu" else own.h100_base) or common.base
    if not own.is_trained or not base.endswith(".toml"):
        return None
    start = run_of(experiment, own.start, scale, seed, runs) if own.start and scale == "cpu" else None
    settings = settings_of(own, common, scale)
    try:
        config = load_config(ROOT / base, [*settings, f"run.seed={seed}", "run.folder=any"])
    except ValueError as error:
        raise ValueError(f"experiment {experiment.name}, arm {arm}, scale {scale}: {error}") from error
    identity = short_hash(write_config(config), own.variant, start.folder.name if start else "")
    folder = runs / "trained" / f"{Path(base).stem}-{identity}"
    return Run(
        base=ROOT / base,
        settings=settings,
        seed=seed,
        variant=own.variant,
        start=start,
        folder=folder,
        hosts=0 if scale == "cpu" else common.hosts,
    )


def settings_of(arm: Arm, scale: Scale, name: str) -> tuple[str, ...]:
    """Of an arm at a scale; what it says itself comes last."""
    if name == "cpu":
        return (*CPU, *scale.settings, *arm.settings, *arm.cpu)
    return (*scale.settings, *arm.settings, *arm.h100)


def short_hash(*parts: str) -> str:
    """Eight digits that tell apart what is not the same."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")
