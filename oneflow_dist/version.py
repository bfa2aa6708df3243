"""Which version of the package this is, and which commit of its code."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path


def package_version() -> str:
    """What pyproject.toml says, as it was installed."""
    return version("oneflow_dist")


def current_commit(folder: Path) -> str:
    """The commit of a checkout, with "-dirty" where files differ from it, or of an image; "" where neither tells.

    A folder that only lies in the checkout of something else, as an installed package may, has none.
    """
    described = ""
    if (folder / ".git").exists() and shutil.which("git") is not None:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        described = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return described or os.environ.get("ONEFLOW_COMMIT", "")
