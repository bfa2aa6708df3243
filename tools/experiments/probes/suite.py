"""The figures of a suite of oneflow evaluate, as a checkpoint of any size is asked."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from oneflow_dist.evaluation.report import REPORT
from oneflow_dist.evaluation.suite import load_suite
from oneflow_dist.toml import write_tables
from tools.experiments.plan import slug
from tools.experiments.reading import ROOT, Probe
from tools.experiments.rows import Row, Subject


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """The first of `probe.kinds` is the suite's file, the others are figures, as "task/figure"; ways add to `sampling`.

    Raises:
        ValueError: a program failed, or the suite has no such figure.
    """
    suite, *figures = probe.kinds
    for way, settings in (probe.ways or {"": ()}).items():
        folder = subject.folder / "suites" / slug(f"{Path(suite).stem} {way}")
        folder.mkdir(parents=True, exist_ok=True)
        file = write_suite(ROOT / suite, settings, folder.with_suffix(".toml"))
        words = [str(subject.folder), "--suite", str(file), "--output", str(folder)]
        done = subprocess.run([sys.executable, "-m", "oneflow_dist.commands.evaluate", *words], cwd=ROOT, check=False)
        if done.returncode:
            raise ValueError(
                f"{subject.folder}: oneflow evaluate ended with code {done.returncode}; see the lines above"
            )
        tasks = json.loads((folder / REPORT).read_text())["tasks"]
        found = {
            f"{task}/{name}": own["value"] for task, told in tasks.items() for name, own in told["figures"].items()
        }
        for figure in figures:
            if figure not in found:
                raise ValueError(f"{suite}: has no figure {figure}; it has {', '.join(found)}")
            yield Row(way, None, figure, float(found[figure]))


def write_suite(path: Path, settings: tuple[str, ...], copy: Path) -> Path:
    """A suite whose tasks have some more settings of the sampler, in a file of its own."""
    suite, more = load_suite(path), tuple(setting.removeprefix("sampling.") for setting in settings)
    tasks = {name: dataclasses.replace(task, sampling=(*task.sampling, *more)) for name, task in suite.task.items()}
    copy.write_text(write_tables(dataclasses.replace(suite, task=tasks)))
    return copy
