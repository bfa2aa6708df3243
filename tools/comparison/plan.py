"""Which runs a comparison needs: of every config the steps that cost a share of one budget of FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.config import Config, load_config
from oneflow_dist.toml import check_range

COUNTED = 16  # steps whose packs are counted
SET_HERE = {  # what --set cannot change
    "run.folder": "OUT",
    "run.seed": "--seeds",
    "train.steps": "--steps and --shares",
    "data.workers": "--jobs",
    "checkpoint.every_steps": "",
    "sampling.every_steps": "",
    "validation.every_steps": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A config that takes part."""

    name: str
    path: Path
    settings: tuple[str, ...]  # section.key=value
    config: Config  # with these
    flops_per_step: float = 0.0  # counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a contender, made or to be made."""

    contender: Contender
    share: float  # of the budget
    seed: int
    steps: int
    folder: Path

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where its programs print."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def flops(self) -> float:
        """That it is expected to cost."""
        return self.steps * self.contender.flops_per_step

    @property
    def overrides(self) -> tuple[str, ...]:
        """All that its config has otherwise than the file; held-out losses come once, at the end."""
        return (
            *self.contender.settings,
            f"run.folder={self.folder}",
            f"run.seed={self.seed}",
            f"train.steps={self.steps}",
            f"optim.warmup_steps={min(self.contender.config.optim.warmup_steps, self.steps // 4)}",
            f"checkpoint.every_steps={self.steps}",
            "sampling.every_steps=0",
            f"validation.every_steps={self.steps}",
            "data.workers=0",
        )


def read_contenders(paths: Sequence[Path], settings: Sequence[str]) -> list[Contender]:
    """The configs of a comparison.

    Raises:
        ValueError: two have one name, one cannot be read or holds nothing out, or a setting is not the user's to make.
    """
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in SET_HERE:
            advice = f"use {SET_HERE[key]}" if SET_HERE[key] else "leave it out"
            raise ValueError(f"--set {setting}: every run has a value of its own; {advice}")
    found: dict[str, Contender] = {}
    for path in paths:
        config = load_config(path, list(settings))
        if path.stem in found:
            raise ValueError(f"CONFIG: {found[path.stem].path} and {path} have one name, {path.stem}; rename one")
        if not config.validation.mixture:
            raise ValueError(f"{path}: has no validation.mixture, whose losses are compared; name one with --set")
        for first in [*found.values()][:1]:
            check_same_data(first.path, first.config, path, config)
        found[path.stem] = Contender(name=path.stem, path=path, settings=tuple(settings), config=config)
    return list(found.values())


def check_same_data(path: Path, config: Config, other_path: Path, other: Config) -> None:
    """Refuse configs whose results would be of other data.

    Raises:
        ValueError: names the key in which they differ.
    """
    keys = [("data", "mixture"), ("data", "tokenizer"), ("validation", "mixture"), ("validation", "samples")]
    for section, key in keys:
        own, its = (getattr(getattr(each, section), key) for each in (config, other))
        if own != its:
            raise ValueError(f"{section}.{key}: {own} in {path}, but {its} in {other_path}; compare on the same data")


def count_flops(config: Config) -> float:
    """Of a step in the mean, in the packs that the run really begins with."""
    from oneflow_dist.model.flops import step_flops
    from tools.benchmark.flops import count_data

    return step_flops(count_data(config, COUNTED), config) / COUNTED


def steps_of(share: float, budget: float, flops_per_step: float) -> int:
    """How many steps cost this share of the budget."""
    return round(share * budget / flops_per_step)


def plan_runs(
    contenders: Sequence[Contender], steps: int, shares: Sequence[float], seeds: Sequence[int], output: Path
) -> list[Run]:
    """All runs, seed by seed and from the smallest share to the largest: whoever stops has the same of every config.

    Args:
        steps: of the first contender, whose FLOPs are the budget; 0: as many as its config says.

    Raises:
        ValueError: a share is less than a step, or a config of a run cannot be.
    """
    budget = (steps or contenders[0].config.train.steps) * contenders[0].flops_per_step
    runs = []
    for seed in seeds:
        for share in sorted(shares):
            for contender in contenders:
                own = steps_of(share, budget, contender.flops_per_step)
                check_range(f"--shares {share:g}: steps of {contender.path}", own, "[1, inf)")
                folder = output / "runs" / f"{contender.name}-{share:g}-{seed}"
                runs.append(Run(contender=contender, share=share, seed=seed, steps=own, folder=folder))
    for run in runs:  # now, and not hours later
        load_config(run.contender.path, list(run.overrides))
    return runs
