from __future__ import annotations

from pathlib import Path

from tests.tools.experiments.making import load, made_up
from tools.experiments.index import write_index
from tools.experiments.results import results_path, save_results


def test_every_claim_of_what_was_measured_has_a_line(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    save_results(made_up(experiment, [0.9, 0.91, 0.92], [0.1, 0.11, 0.12]), results_path(tmp_path, "small"))
    page = write_index({"small": experiment, "unmeasured": experiment}, tmp_path)
    assert "1 claims: 1 seen" in page
    assert "| [Small](small.md) | one is right more often than two | a test | **seen** | 0.910" in page
    assert "unmeasured" not in page
