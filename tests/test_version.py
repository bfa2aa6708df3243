"""Which version this is, and of which commit."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from oneflow_dist.version import current_commit, package_version


def test_the_version_is_that_of_the_project(root: Path) -> None:
    assert package_version() == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]


def test_a_folder_without_git_has_no_commit_but_that_of_its_image(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFLOW_COMMIT", "0123abc")
    assert current_commit(tmp_path) == "0123abc"
    monkeypatch.setenv("ONEFLOW_COMMIT", "")  # an image that was built without it
    assert current_commit(tmp_path) == ""
    assert current_commit(root / "oneflow_dist") == ""  # which lies in a checkout, and is none
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit(root) == ""


def test_a_checkout_has_the_commit_that_git_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    for words in (("init", "--quiet"), ("add", "file"), (*who, "commit", "--quiet", "--message", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = current_commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert current_commit(tmp_path) == f"{commit}-dirty"
