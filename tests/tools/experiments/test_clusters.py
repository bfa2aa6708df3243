from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.experiments.making import load
from tools.experiments import clusters
from tools.experiments.clusters import PAGE, plan, write_plans
from tools.experiments.plan import run_of


def test_arms_that_cost_the_same_are_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def trace(config: object, world: int) -> str:
        traced.append(world)
        return "trace"

    monkeypatch.setattr(clusters, "trace_step", trace)
    monkeypatch.setattr(clusters, "estimate", lambda trace, config, cluster: trace)
    experiment, known = load(tmp_path), dict[str, object]()
    for arm in ("one", "two", "one"):  # they differ in their learning rate and steps
        run = run_of(experiment, arm, "h100", 0, tmp_path)
        assert run is not None
        plan(run, known)  # type: ignore[arg-type]
    assert traced == [8]


def test_the_page_has_a_row_for_each_arm(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    write_plans({"small": experiment}, tmp_path / "pages")
    rows = [line for line in (tmp_path / "pages" / PAGE).read_text().splitlines() if line.startswith("| ")]
    one, two = rows[-2:]
    assert "configs/oneflow_1b.toml train.steps=1000" in one
    assert "train.steps=7" in two
    assert [cell.strip() for cell in one.split("|")][3:5] == ["8", "1,000"]
