"""What tools/stages/make.py writes of small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkout import write_documents, write_pairs, write_statements
from tests.launching import run_main
from tools.stages import make as program


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections, captioned pictures and statements about pictures, two shards of each."""
    folder = tmp_path_factory.mktemp("raw")
    for name, write in (("openstax", write_documents), ("emoji", write_pairs), ("nlvr", write_statements)):
        write(folder / name)
    return folder


@pytest.fixture(scope="session")
def make(raw: Path) -> Callable[..., Path]:
    """Runs the tool in this process."""

    def run(folder: Path, *arguments: str) -> Path:
        sources = [f"--text={raw}/openstax/openstax-{{}}-*.tar", f"--pictures={raw}/emoji/emoji-{{}}-*.tar"]
        run_main(program, folder, *sources, f"--nlvr={raw}/nlvr/*.tar", "--samples=24", *arguments)
        return folder

    return run


@pytest.fixture(scope="session")
def made(make: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards and the vocabulary."""
    return make(tmp_path_factory.mktemp("made") / "stages")
