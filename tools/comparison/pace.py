"""How long a step of each config takes: measured in turn, when nothing else of a comparison is under way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from oneflow_dist.commands.curves import read_lines
from tools.comparison.plan import Contender, Run

ROUNDS, STEPS, WARMUP = 3, 40, 10
PACE = "pace.json"


def measure_pace(contenders: Sequence[Contender], output: Path, train: Callable[[Run], None]) -> dict[str, float]:
    """Median seconds of a step, by name; what has been measured is not measured again.

    Runs of a comparison share the cores with each other, and whatever else is going on then: their own seconds compare
    nothing.

    Args:
        train: makes a run.

    Raises:
        ValueError: what is there is damaged.
    """
    path, names = output / PACE, [contender.name for contender in contenders]
    if path.exists():
        try:
            found = json.loads(path.read_text())
            return {name: float(found[name]) for name in names}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged, or of other configs ({error!r}); remove it") from error
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for contender in contenders:
            folder = output / "pace" / f"{contender.name}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            train(Run(contender=contender, share=0.0, seed=0, steps=STEPS, folder=folder))
            steps = [line["seconds"] for line in read_lines(folder) if "seconds" in line]
            seconds[contender.name] += steps[WARMUP:]
    pace = {name: float(np.median(values)) for name, values in seconds.items()}
    path.write_text(json.dumps(pace, indent=2) + "\n")
    return pace
