"""The table of faults; tests/torture/faults.py makes what is in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.launching import run_main
from tests.messages import names, naming
from tests.torture import fault_table
from tests.torture.faults import FAULTS, Outcome

DID = "went on"


def test_a_table_has_a_row_for_each_fault_and_names_the_runs_that_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = FAULTS
    outcomes = [Outcome(fault=first, number=number, node=0, did=DID, seconds=float(number)) for number in range(5)]
    outcomes[4].wrong = ["a traceback"]
    outcomes += [Outcome(fault=second, number=0, node=1, wrong=["exit code 1"])]
    (tmp_path / "in").write_text("".join(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes))
    run_main(fault_table, tmp_path / "in", tmp_path / "out/faults.json")
    row, other, *wrong = capsys.readouterr().out.splitlines()[2:]
    assert names(row, first, 5, 4, DID, "1.5", "3.0")  # of those that did what they should
    assert names(other, second, 1, 0)
    assert [line.partition(":")[0] for line in wrong] == [f"{first} 4", f"{second} 0"]
    assert [Outcome(**table) for table in json.loads((tmp_path / "out/faults.json").read_text())] == outcomes
    with Image.open(tmp_path / "out/faults.png") as picture:
        assert picture.getextrema() != ((255, 255),) * 4


def test_a_table_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "none")):
        run_main(fault_table, tmp_path / "none", tmp_path / "faults.json")
