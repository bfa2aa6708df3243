"""tests/torture/machines.py on two tests of a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.messages import Message
from tests.torture import machines

TESTS = """
import numpy, os, torch
from tests.conftest import _threads
from tests.launching import run_python

def test_of_the_environment():
    assert (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()) == (2, "AVX2")
    assert os.environ["OPENBLAS_CORETYPE"] == "Haswell"
    assert not os.environ["TMPDIR"].endswith("of_this_machine")

def test_of_a_program():
    assert run_python("-c", "import torch; print(torch.get_num_threads())").stdout == "2\\n"

def test_that_fails():
    assert torch.get_num_threads() == 1
"""
MACHINE = "AVX2, another maker's, 2 threads"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the tool's arguments, and an environment that it has to change; returns the folder of its table."""
    (tmp_path / "test_two.py").write_text(TESTS)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/of_this_machine")
    monkeypatch.setenv("ONEFLOW_TEST_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["x", f"--output={tmp_path}/out/table.md", f"--machine={MACHINE}", f"{tmp_path}"])
    return tmp_path / "out"


def test_the_environment_reaches_tests_and_programs_and_failures_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        machines.main()
    assert end.value.code == 1
    *_, rule, row = (run / "table.md").read_text().splitlines()
    assert capsys.readouterr().out == (run / "table.md").read_text()
    assert rule == "| --- | --- | --- | --- | --- |"
    name, passed, failed, seconds, failures = row.strip("| ").split(" | ")
    assert (name, passed, failed, failures) == (MACHINE, "2", "1", "test_two::test_that_fails")
    assert float(seconds) >= 0.0
    assert "assert 2 == 1" in (run / "table.log").read_text()


def test_what_the_cpu_has_not_is_not_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "read_cpu", lambda: {"model name": "Old", "flags": "sse sse2"})
    with pytest.raises(SystemExit) as end:
        machines.main()
    assert end.value.code == 0
    assert (run / "table.md").read_text().splitlines()[-1] == f"| {MACHINE} | | | | not run: this CPU has no avx2 |"


def test_a_run_without_tests_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", f"--output={run}/table.md", "--machine=AVX2", "--", f"{run}/none.py"])
    with pytest.raises(ValueError) as error:
        machines.main()
    assert Message(error.value) == f"pytest ended with code 4; see the end of {run}/table.log"
