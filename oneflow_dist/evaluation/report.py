"""A suite's report: every figure with its interval, and all that is needed to make it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.evaluation.answers import read_answers
from oneflow_dist.evaluation.interleaved.parts import describe
from oneflow_dist.evaluation.items import Item, read_items
from oneflow_dist.evaluation.official_files import write_official
from oneflow_dist.evaluation.scoring import Asked, match, score
from oneflow_dist.evaluation.suite import OFFICIAL, Suite
from oneflow_dist.files import write_whole

REPORT, ANSWERS, OFFICIAL_FOLDER, RUN = "report.json", "answers", "official", "run.json"
LIBRARIES = ("oneflow_dist", "torch", "numpy", "pillow", "scikit-learn", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Whose answers they are."""

    checkpoint: str  # sha256 of its weights
    step: int
    parameters: int
    config: str  # sha256


def score_suite(suite: Suite, folder: Path, items: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Score all answers in a folder, write the official files and report.json, and return what that says.

    Raises:
        ValueError: an answer is missing or damaged, or a score cannot be made of these.
    """
    tasks = {}
    for name, task in suite.task.items():
        asked = match(name, task, suite.suite, items[name], read_answers(folder / ANSWERS / name))
        if task.source in OFFICIAL:
            write_official(task, asked.items, asked.answers, folder / OFFICIAL_FOLDER / name)
        tasks[name] = describe_task(asked)
    protocol = json.loads((folder / RUN).read_text())
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if is_installed(name)}
    report = {"protocol": {**protocol, "libraries": versions}, "tasks": tasks}
    write_whole(folder / REPORT, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    return report


def describe_task(asked: Asked) -> dict[str, Any]:
    """The figures of a task, with what was asked and how."""
    scored = score(asked)
    digest = hashlib.sha256("".join(item.sha256 for item in asked.items).encode()).hexdigest()
    return {
        "figures": {name: describe(measure) for name, measure in scored.measures.items()},
        "notes": scored.notes,
        "items": len({item.key for item in asked.items}),
        "documents": len(asked.answers),
        "items_sha256": digest,
        "settings": asdict(asked.task),
    }


def is_installed(name: str) -> bool:
    """Whether a package is there."""
    return any(True for _ in importlib.metadata.distributions(name=name))


def as_table(report: Mapping[str, Any]) -> str:
    """The figures in lines, for people."""
    lines = []
    for name, task in report["tasks"].items():
        lines.append(f"{name}: {task['documents']} documents of {task['items']} items")
        for figure, own in task["figures"].items():
            lines.append(f"  {figure:<36} {own['value']:>9.4f}   [{own['low']:.4f}, {own['high']:.4f}]")
        lines += [f"  {note}" for note in task["notes"]]
    return "\n".join(lines)


def load_items(suite: Suite) -> dict[str, list[Item]]:
    """Of each task."""
    return {name: read_items(name, task) for name, task in suite.task.items()}
