"""Real torchrun, two ranks, two data workers each; docs/guards.md has all sixty cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.signals import Cell, judge, run_cell

CELLS = [
    (Cell("SIGUSR1", "group", "step"), "saved after step "),
    (Cell("SIGKILL", "agent", "save"), "saved after step "),
    (Cell("SIGKILL", "worker", "step"), "error (rank 1): data worker 1, which was at "),
    (Cell("SIGTERM", "worker", "start"), "saved after step "),
    (Cell("SIGINT", "rank", "start"), "rank 1: stopped by SIGINT before its first step; nothing to save"),
]


@pytest.mark.parametrize(("cell", "said"), CELLS, ids=lambda value: getattr(value, "name", ""))
def test_a_signal_saves_a_run_or_is_answered_in_a_line_and_nothing_stays_behind(
    cell: Cell, said: str, digits: Path, tmp_path: Path
) -> None:
    data = [f"data.mixture={digits / 'mixture.yaml'}", f"data.tokenizer={digits / 'words.tiktoken'}"]
    verdict, is_good = run_cell(cell, tmp_path / cell.name, data)
    output = (tmp_path / cell.name / "output").read_text()
    assert is_good, f"{verdict}\n{output}"
    assert said in verdict


def test_a_traceback_a_lost_step_and_silence_are_no_good_ends(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("{}\n" * 4)
    for cell in (Cell("SIGTERM", "group", "step"), Cell("SIGKILL", "rank", "step")):
        for output in ("", "[rank0]: Traceback (most recent call last)\n[rank0]: RuntimeError\n"):
            (tmp_path / "output").write_text(output)
            assert not judge(cell, tmp_path, 1)[1]
    (tmp_path / "output").write_text("45%|##error (rank 1): data worker 0 was killed\n")
    assert judge(Cell("SIGKILL", "worker", "step"), tmp_path, 1)[1]
    assert not judge(Cell("SIGTERM", "worker", "step"), tmp_path, 1)[1]
