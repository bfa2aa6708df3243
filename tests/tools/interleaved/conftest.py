"""What tools/interleaved/make.py writes of small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launching import made_once, run_main
from tests.tools.interleaved.made_up import write_emoji, write_sections
from tools.interleaved import make as program


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs the tool in this process."""
    raw = tmp_path_factory.mktemp("raw")
    sources = ["--emoji", write_emoji(raw), "--sections", write_sections(raw)]

    def run(folder: Path, *arguments: str) -> Path:
        run_main(program, folder, *sources, "--stories=24", "--items=6", *arguments)
        return folder

    return run


@pytest.fixture(scope="session")
def made(make: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark, the shards and the vocabulary."""
    return made_once("interleaved", lambda folder: make(folder / "interleaved"), tmp_path_factory)
