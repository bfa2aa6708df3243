"""The Dockerfile and what goes with it, without building; tests/torture/image.py builds and runs the image."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import time
import tomllib
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
STEPS = [(step["instruction"], step["value"]) for step in DOCKERFILE.structure if step["instruction"] != "COMMENT"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
CONTAINER = ROOT / "launch/container.sh"


def values(instruction: str) -> list[str]:
    """What stands behind every instruction of a kind."""
    return [value for name, value in STEPS if name == instruction]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last pattern decides that fits it or a folder that it is in."""
    parents = [str(parent) for parent in (Path(path), *Path(path).parents)][:-1]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = [Path(parent).name for parent in parents] if pattern.startswith("**/") else parents
        if line and not line.startswith("#") and any(fnmatch(part, pattern.removeprefix("**/")) for part in parts):
            ignored = not line.startswith("!")
    return ignored


def test_the_base_is_one_image_by_its_digest_and_can_be_replaced() -> None:
    assert values("FROM") == ["${BASE}"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", str(DOCKERFILE.baseimage))


def test_the_user_is_a_number_and_not_root_when_the_container_starts() -> None:
    number, group = values("USER")[-1].split(":")
    assert int(number) > 0
    assert int(group) > 0
    assert STEPS.index(("USER", values("USER")[-1])) > max(i for i, (name, _) in enumerate(STEPS) if name == "RUN")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [word for value in values("COPY") for word in shlex.split(value)[:-1] if not word.startswith("--")]
    assert "." in copied
    sources = [path for path in copied if path != "."]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources
    for path in [*sources, *allowed, "launch/container.sh", "oneflow_dist/train.py", "Makefile"]:
        assert (ROOT / path).exists(), path
        assert not is_ignored(path), path


def test_nothing_private_or_left_over_gets_into_the_image() -> None:
    left_over = (".git/config", ".venv/bin/python", "runs/a/wandb-id", "data/digits/x.tar", ".env", "id_rsa")
    for path in (*left_over, "tools/__pycache__/plan.pyc", "oneflow_dist/data/__pycache__/tar.pyc"):
        assert is_ignored(path), path


def test_pip_takes_nothing_that_is_not_in_the_lock_with_its_hash() -> None:
    commands = [shlex.split(part) for value in values("RUN") for part in value.split("&&")]
    calls = [words[words.index("pip") + 2 :] for words in commands if "pip" in words and "install" in words]
    assert len(calls) >= 2
    for words in calls:
        by_hash = "--require-hashes" in words and ("requirements.lock" in words or "--no-deps" in words)
        assert by_hash or {"--no-index", "--no-deps", "--no-build-isolation"} < set(words), words


def test_every_line_of_the_lock_has_one_version_and_hashes() -> None:
    whole = re.compile(r"[\w.-]+==[\w.]+(; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+")
    assert [line for line in LOCK if not whole.fullmatch(line)] == []


def test_the_lock_has_everything_that_the_project_asks_for() -> None:
    locked = {canonicalize_name(line.partition("==")[0]) for line in LOCK}
    extras = chain(*PROJECT["project"]["optional-dependencies"].values())
    asked = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *extras]
    assert {canonicalize_name(Requirement(text).name) for text in asked} <= locked


def test_the_image_has_the_extras_of_what_runs_in_it() -> None:
    """The trainer with its sinks, the quickstart with its data, the server, the encoders."""
    (step,) = (value for value in values("RUN") if "optional-dependencies" in value)
    named = re.findall(r'"(\w+)"', re.findall(r"names = \(([^)]*)\)", step)[0])
    assert {"evaluate", "experiments", "latents", "remote", "serve", "track"} <= set(named)
    assert set(named) <= set(PROJECT["project"]["optional-dependencies"]) - {"dev"}


def test_labels_agree_with_the_project() -> None:
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in DOCKERFILE.labels.items()}
    assert labels["version"] == PROJECT["project"]["version"]
    assert labels["licenses"] == PROJECT["project"]["license"]
    assert {"SOURCE=", "REVISION="} <= set(values("ARG"))


@pytest.mark.parametrize("word", ["# syntax=", "<<", "--link"])
def test_the_file_is_understood_by_builders_that_know_less(word: str) -> None:
    assert word not in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("typed", "started"),
    [
        ("configs/debug.toml train.steps=1", "python -m oneflow_dist.train configs/debug.toml train.steps=1"),
        ("--help", "python -m oneflow_dist.train --help"),
        ("quickstart", "make --no-print-directory -C /oneflow_dist quickstart"),
        ("torchrun --nproc-per-node 2 -m oneflow_dist.train x.toml",) * 2,
        ("oneflow plan x.toml",) * 2,
    ],
)
def test_arguments_are_for_the_trainer_unless_they_name_a_program(typed: str, started: str, tmp_path: Path) -> None:
    for program in ("oneflow", "python", "make", "torchrun"):
        (tmp_path / program).write_text('#!/bin/sh\necho "${0##*/} $*"\n')
        (tmp_path / program).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    end = subprocess.run([CONTAINER, *typed.split()], env=env, capture_output=True, text=True, check=True)
    assert end.stdout == f"{started}\n"


def test_a_run_without_a_step_in_half_an_hour_is_unhealthy(tmp_path: Path) -> None:
    path = tmp_path / "a run" / "metrics.jsonl"
    path.parent.mkdir()
    ends = []
    with path.open("w"):
        for age in (3600, 60):
            os.utime(path, (time.time() - age,) * 2)
            ends.append(subprocess.run([CONTAINER, "health"], capture_output=True, text=True, check=False))
    assert str(path) in ends[0].stdout
    assert ends[0].returncode == 1
    assert str(path) not in ends[1].stdout
