"""Evaluation beside a training: each checkpoint when it is there, its figures as a line in evaluation.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oneflow_dist.progress import find_latest, read_config, read_progress
from oneflow_dist.trained import find_checkpoint

LINES = "evaluation.jsonl"


def checkpoints_of(run: Path, follow: float | None) -> Iterator[Path]:
    """The checkpoint of a run; or the newest each time that there is a new one, until that of the last step.

    Args:
        follow: seconds between two looks; None: one look.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    if follow is None:
        yield find_checkpoint(run)
        return
    last = None
    while True:
        newest = find_latest(str(run))
        if newest is not None and newest != last:
            yield newest
            last = newest
            if read_progress(newest).step >= read_config(newest).train.steps:
                return
        time.sleep(follow)


def folder_of(run: Path, suite: str, checkpoint: Path) -> Path:
    """Where the answers of a checkpoint go."""
    return run / "evaluation" / suite / f"step-{read_progress(checkpoint).step:08d}"


def note_figures(run: Path, suite: str, report: Mapping[str, Any]) -> None:
    """A line with the step and all figures, for curves."""
    figures = {
        f"{suite}/{task}/{name}": own["value"]
        for task, of_task in report["tasks"].items()
        for name, own in of_task["figures"].items()
    }
    with (run / LINES).open("a") as file:
        file.write(json.dumps({"step": report["protocol"]["step"], **figures}) + "\n")
