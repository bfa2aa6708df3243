"""Every program answers a question about its arguments before it imports what takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PROGRAMS = [
    path
    for folder in ("tools", "oneflow_dist/commands")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "run_program(main)" in path.read_text()
]
ASK = """
import contextlib, io, json, runpy, sys
sys.modules["torch"] = None  # it cannot be imported
answers = {}
for program in sys.argv[1:]:
    sys.argv, answer = [program, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            runpy.run_path(program, run_name="__main__")
    except SystemExit:
        answers[program] = answer.getvalue()
    except ImportError as error:
        answers[program] = str(error)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What each program prints, or which import failed."""
    command = [sys.executable, "-c", ASK, *map(str, PROGRAMS)]
    end = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    answers: dict[str, str] = json.loads(end.stdout)
    return answers


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_help_of_a_program_needs_no_torch(program: Path, answers: dict[str, str]) -> None:
    assert answers[str(program)].startswith("usage: ")
