"""docs/extending.md: every diff applies to the code as it is, and the commands below it run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import run_afresh
from tests.documents import ROOT, Command, read_command

FOLDERS = ("configs", "kernels", "oneflow_dist", "tests", "tools")
PAGE = (ROOT / "docs/extending.md").read_text()
DIFF = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
ADDS = {
    "oneflow_dist.train": ("train.steps=2", "data.workers=0", "data.packs_per_step=1", "sampling.every_steps=0"),
    "oneflow_dist.commands.sample": ("--steps=2",),
    "tools/colours.py": ("--documents=64",),
    "tools/experiment.py": ("--seeds=1",),
}


def commands_of(section: str) -> list[Command]:
    """In small."""
    typed = [read_command(line[4:]) for line in DIFF.sub("", section).splitlines() if line.startswith("    ")]
    return [dataclasses.replace(own, arguments=(*own.arguments, *ADDS.get(own.program, ()))) for own in typed]


@pytest.fixture(scope="module")
def copy(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What diffs change, with the data of the quickstart, in fewer shards."""
    here = tmp_path_factory.mktemp("extending")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", here)
    mixture = here / "configs/data/quickstart.yaml"
    mixture.write_text(re.sub(r"count-train-\{[^}]*\}", "count-train-000000", mixture.read_text()))
    (here / "data").mkdir()
    (here / "data/digits").symlink_to(digits)
    return here


@pytest.mark.parametrize("title", SECTIONS)
def test_a_diff_applies_and_what_it_adds_runs(title: str, copy: Path, tmp_path: Path) -> None:
    (diff,) = DIFF.findall(SECTIONS[title])
    commands = commands_of(SECTIONS[title])
    assert {command.program for command in commands} & {"oneflow_dist.train", "tools/experiment.py"}
    here = tmp_path / "checkout"
    shutil.copytree(copy, here, symlinks=True)
    applied = subprocess.run(["git", "apply", "-"], cwd=here, input=diff, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"docs/extending.md, {title}: {applied.stderr}"
    for command in commands:
        start = [command.program] if "/" in command.program else ["-m", command.program]
        end = run_afresh([*start, *command.arguments], {"CUDA_VISIBLE_DEVICES": "", "HOME": str(here)}, here)
        assert end.code == 0, end.stdout + end.stderr
    metrics = next((here / "runs").rglob("metrics.jsonl"))
    names = json.loads(metrics.read_text().splitlines()[-1])
    assert set(re.findall(r"`(loss/\w+)`", SECTIONS[title])) <= set(names)
