"""Measure an arm of an experiment: `python -m tools.experiments.measuring SCALE EXPERIMENT ARM SEED MODEL FILE`.

A process of its own, since an arm may have a part of the method replaced.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from oneflow_dist.runtime import run_program
from tools.experiments.plan import probes_of
from tools.experiments.reading import SCALES, Experiment, at_scale, load_experiment
from tools.experiments.rows import Row, Subject
from tools.experiments.varied import replace_parts


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("experiment", help="name, or TOML file")
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("model", type=Path, help="run folder")
    parser.add_argument("file", type=Path, help="for the rows, as JSON")
    args = parser.parse_args()
    experiment = at_scale(load_experiment(args.experiment), args.scale)
    replace_parts(experiment.arm[args.arm].variant)
    rows = measure(experiment, args.arm, args.seed, args.model)
    args.file.write_text(json.dumps(rows))


def measure(experiment: Experiment, arm: str, seed: int, model: Path) -> list[tuple[str, Row]]:
    """All rows that the probes give, each with the probe's name.

    Raises:
        ValueError: a probe gives a figure that the experiment does not have, or none of one that it has.
    """
    found = []
    subject = Subject(experiment=experiment, arm=arm, seed=seed, folder=model)
    for name, probe in probes_of(experiment, arm, seed).items():
        start = time.perf_counter()
        rows: Iterable[Row] = importlib.import_module(f"tools.experiments.probes.{probe.kind}").measure(subject, probe)
        wanted = {own.of or figure for figure, own in experiment.figure.items() if own.probe == name}
        found += [(name, row) for row in rows if row.figure in wanted]
        missing = wanted - {row.figure for _, row in found}
        if missing:
            raise ValueError(f"experiment {experiment.name}: probe {name} gave no {', '.join(sorted(missing))}")
        print(f"{experiment.name}, {arm}, seed {seed}: {name} in {time.perf_counter() - start:.1f} s", flush=True)
    return found


if __name__ == "__main__":
    run_program(main)
