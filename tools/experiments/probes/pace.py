"""Seconds of a training step of several arms, which take turns: whatever else is going on slows all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oneflow_dist.commands.curves import read_lines
from tools.experiments.plan import run_of
from tools.experiments.reading import ROOT, Probe
from tools.experiments.rows import Row, Subject

STEPS, WARMUP = 30, 6


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """step_seconds: the median of the arms that `probe.kinds` names, each a way; every seed is one more round."""
    with tempfile.TemporaryDirectory() as folder:
        for arm in probe.kinds:
            yield Row(arm, None, "step_seconds", float(np.median(step_seconds(subject, arm, Path(folder) / "run"))))


def step_seconds(subject: Subject, arm: str, folder: Path) -> list[float]:
    """Of the first steps of an arm's training, without the very first.

    Raises:
        ValueError: it is not trained, or its training fails.
    """
    run = run_of(subject.experiment, arm, "cpu", subject.seed, folder.parent)
    if run is None:
        raise ValueError(f"kinds: {arm} is not trained, so that its steps take no time; leave it out")
    short = (f"train.steps={STEPS}", "optim.warmup_steps=5", "validation.mixture=", "validation.every_steps=0")
    words = [str(run.base), *run.overrides, *short, f"run.folder={folder}", f"checkpoint.every_steps={STEPS}"]
    done = subprocess.run(
        [sys.executable, "-m", "oneflow_dist.train", *words], cwd=ROOT, env=os.environ, capture_output=True
    )
    if done.returncode:
        raise ValueError(
            f"{arm}: its training ended with {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}"
        )
    found = [line["seconds"] for line in read_lines(folder) if "seconds" in line]
    shutil.rmtree(folder)
    return found[WARMUP:]
