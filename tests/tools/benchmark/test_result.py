from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.messages import naming
from tests.tools.benchmark.made_up import MACHINE
from tools.benchmark.drawing import draw_series
from tools.benchmark.result import Measured, Result, read_results, written

RESULT = Result(
    command=["python", "-m", "tools.benchmark", "train", "a b.toml"],
    options={"steps": 20},
    config={"run": {"seed": 0}},
    machine=MACHINE | {"ranks": 1},
    measured=Measured(
        numbers={"rows/s": 12345.6, "peak is": "given", "power": None},
        series={
            "milliseconds of a step": {"whole": [float(n) for n in range(101)], "data": []},
            "GFLOP, expected": {"mlp": [2.0], "all": [3.0]},
            "GFLOP, drawn": {"mlp": [2.5], "all": [3.5]},
            "ratio": {"rows": [0.5]},
        },
        notes=["What counts."],
    ),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "runs/2", Figure())
    RESULT.write(tmp_path / "runs/1", draw_series(RESULT.measured.series, RESULT.describe()))
    for path, times in (("runs/1/result.json", 1), ("runs/1", 1), ("runs", 2)):
        assert read_results(tmp_path / path) == [RESULT] * times
    with Image.open(tmp_path / "runs/1/plot.png") as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 10  # something is drawn


@pytest.mark.parametrize(
    "line",
    [
        "# python -m tools.benchmark train 'a b.toml'",
        "What counts.",
        "| rows/s | 12,346 |",
        "| peak is | given |",
        "| power | not known here |",
        "| whole | 50 | 10 | 50 | 90 | 99 | 101 |",
        "|  | GFLOP, expected | GFLOP, drawn |",
        "| mlp | 2 | 2.5 |",
        "| rows | 0.5 |",
    ],
)
def test_a_report_has_every_number_and_its_machine(line: str) -> None:
    lines = RESULT.report().splitlines()
    assert line in lines
    assert any("NVIDIA H100" in line and "0123abc" in line for line in lines)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"measured": {"numbers": 1, "unknown": 2}}'])
def test_what_is_no_result_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json.*no result"):
        read_results(tmp_path)


def test_a_folder_without_results_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path)):
        read_results(tmp_path)


def test_numbers_have_four_digits_or_all_of_their_whole_part() -> None:
    assert [written(value) for value in (0.123456, 999.96, 1234567.8)] == ["0.1235", "1000", "1,234,568"]
