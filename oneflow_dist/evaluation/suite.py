"""A suite, a TOML file: which questions are asked of a model, how it is to answer, and what is made of the answers."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from oneflow_dist.config import Config, check_config
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.toml import (
    NonNegative,
    Positive,
    apply_override,
    check_range,
    field_ranges,
    read_tables,
    write_tables,
)

Source = Literal[
    "prompts", "shards", "conversations", "items", "coco_captions", "vqa", "pope", "dpg", "geneval", "wise"
]
Score = Literal[
    "captions",
    "meteor",
    "vqa",
    "exact",
    "yes_no",
    "chair",
    "distance",
    "alignment",
    "labels",
    "counting",
    "stories",
    "figures",
]
OFFICIAL: tuple[Source, ...] = ("coco_captions", "vqa", "pope", "dpg", "geneval", "wise")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """[task.NAME] Questions of one kind."""

    source: Source
    path: str = ""  # of its items: shards, a .jsonl file, or what a benchmark calls its annotations
    pictures: str = ""  # folder of those that items name
    labelled: str = ""  # folder of pictures in folders named by what they show, with which made ones are compared
    trained_on: str = ""  # shards of the training data, among which copies are looked for
    held_out: str = ""  # shards of what answers should be like, for a ladder, where items do not say it
    objects: str = ""  # JSON of CHAIR: by picture its objects, and the words for them
    prompt: str = ""  # with an item's fields in braces, {picture} for a given one, and marks as "<|image|>", "<|hole|>"
    prompts: tuple[str, ...] = ()  # of the source "prompts"
    where: dict[str, str] = field(default_factory=dict)  # fields that items must have
    count: NonNegative = 0  # items at most; 0: all
    repeats: Positive = 1  # documents of each item
    group: Positive = 32  # documents that are written together; a killed process loses one group at most
    answer: Literal["generation", "bound"] = "generation"  # or the one of the item's choices with the least bound
    choices: tuple[str, ...] = ()  # where items do not have their own
    truth: str = "references"  # the field that the answer is compared with
    scores: tuple[Score, ...]  # of official sources there may be none: their own programs read the answers
    keeps_states: bool = False  # of pictures, after each step: from when on can one be recognised?
    seed: NonNegative = 0
    sampling: tuple[str, ...] = ()  # what differs from the checkpoint's [sampling], as ["steps=50", "guidance.image=5"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """[suite] What all tasks have in common."""

    features: str = "efficientnet-lite0"  # of distances: this, a SigLIP folder, or a file of Inception's weights
    features_sha256: str = ""  # of that file, where it is no known one
    aligner: str = "conse"  # this, or the folder of a CLIP


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """All tasks by their names."""

    suite: SuiteConfig
    task: dict[str, TaskConfig]


def load_suite(path: str | Path) -> Suite:
    """Read a suite.

    Raises:
        ValueError: no such file, no TOML, an unknown key, or what does not go together; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such suite; those of the project lie in configs/suites")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from error
    try:
        suite: Suite = read_tables(Suite, table)
        check_suite(suite)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return suite


def write_suite(suite: Suite) -> str:
    """As TOML, with all defaults."""
    return write_tables(suite)


def limit_suite(suite: Suite, most: int) -> Suite:
    """The same with at most so many items of each task, and as many documents of each: for a quick look."""
    tasks = {
        name: dataclasses.replace(task, count=min(task.count or most, most), repeats=min(task.repeats, most))
        for name, task in suite.task.items()
    }
    return dataclasses.replace(suite, task=tasks)


def check_suite(suite: Suite) -> None:
    """Refuse what cannot be asked or scored.

    Raises:
        ValueError: names the key and its value.
    """
    if not suite.task:
        raise ValueError("task: there is none; write a table [task.NAME]")
    for name, task in suite.task.items():
        where = f"task.{name}"
        if not name.replace("_", "").isalnum() or name != name.lower():
            raise ValueError(f"{where}: is the name of a folder; write it in small letters, digits and _")
        for key, interval in field_ranges(TaskConfig).items():
            check_range(f"{where}.{key}", getattr(task, key), interval)
        if not task.scores and task.source not in OFFICIAL:
            raise ValueError(f"{where}.scores: is empty; name at least one of {', '.join(get_args(Score))}")
        check_source(where, task)


def check_source(where: str, task: TaskConfig) -> None:
    """Refuse a task that lacks what its source or its scores need."""
    if (task.source == "prompts") != bool(task.prompts):
        what = "leave them out" if task.prompts else "write some"
        raise ValueError(f'{where}.prompts: {len(task.prompts)} with the source "{task.source}"; {what}')
    if (task.source == "prompts") == bool(task.path):
        what = "leave it out" if task.path else "name what its items are read from"
        raise ValueError(f'{where}.path: is "{task.path}" with the source "{task.source}"; {what}')
    if not task.prompt and task.source not in ("prompts", "items", "conversations"):
        raise ValueError(f'{where}.prompt: is missing; write one, as "{{picture}}" for captions')
    needs = {"labels": "labelled", "counting": "labelled", "stories": "labelled", "chair": "objects"}
    for score, key in needs.items():
        if score in task.scores and not getattr(task, key):
            raise ValueError(f"{where}.{key}: is missing, which the score {score} needs; name its folder or file")
    if task.answer == "bound" and "exact" not in task.scores:
        raise ValueError(f'{where}.scores: a choice by "bound" is scored by "exact"; add it, or take "generation"')


def config_of(task: TaskConfig, config: Config) -> Config:
    """The config of a checkpoint with what a task says of generation instead.

    Raises:
        ValueError: an unknown key of [sampling], or a value that it cannot have.
    """
    table: dict[str, Any] = dataclasses.asdict(config.sampling)
    own = {"sampling": {key: [*value] if isinstance(value, tuple) else value for key, value in table.items()}}
    for override in task.sampling:
        apply_override(own, f"sampling.{override}")
    sampling: SamplingConfig = read_tables(SamplingConfig, own["sampling"], "sampling")
    config = dataclasses.replace(config, sampling=sampling)
    check_config(config)
    return config
