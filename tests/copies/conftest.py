"""A run that keeps copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from tests.copies.making import with_copies


@pytest.fixture
def run_config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    """Of the tests' small world, with folders of its own."""
    return with_copies(make_config, tmp_path)
