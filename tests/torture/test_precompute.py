from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import Launcher, only_error
from tests.precompute.making import FLAGS, write_shards
from tests.torture import precompute

TOOL = "tests/torture/precompute.py"


def test_kills_and_company_change_no_byte(launcher: Launcher, tmp_path: Path) -> None:
    write_shards(tmp_path / "raw", num_shards=2, samples=20)
    command = (TOOL, f"{tmp_path}/raw/*.tar", tmp_path / "scratch", "--kills", "3", "--", *FLAGS)
    end = launcher.run(*command)
    assert end.code == 0, end.stderr
    lines = end.stdout.splitlines()
    assert lines[0].endswith("2 shards complete")
    assert lines[1].split() == ["kill", "at", "shard", "complete", "in", "work"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert lines[5:] == [
        "killed: 10 files, all the same bytes as unbroken",
        "together: 10 files, all the same bytes as unbroken",
    ]
    again = launcher.run(*command)
    folder = tmp_path / "scratch" / "unbroken"
    assert (again.code, only_error(again)) == (
        2,
        f"error: {folder}: exists; name a folder without it, since nothing is ever deleted",
    )


def test_a_run_that_fails_is_an_error(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(TOOL, tmp_path / "none.tar", tmp_path / "scratch", "--", *FLAGS)
    assert end.code == 2
    assert f"error: source raw: no such shard {tmp_path}/none.tar; " in end.stderr
    assert f"error: {tmp_path}/scratch: a run ended with an error, see above" in end.stderr


def test_a_difference_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("one", b"x"), ("other", b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_bytes(b"same")
        (tmp_path / name / "file").write_bytes(content)
    (tmp_path / "other" / "stray.partial").touch()
    assert precompute._compare(tmp_path / "one", tmp_path / "other") == "other/file"
    assert capsys.readouterr().out == "other: 2 of 3 differ as one\n"
