from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import Launcher, only_error
from tests.messages import naming
from tools.stages.report import STAGES, read_curves


def test_curves_are_the_numbers_of_metrics_by_name(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 3.0, "skipped": "spike"},
        {"step": 2, "loss": 2.0},
        {"step": 2, "validation/text": 2.5},
        {"step": 3, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert (curves["step"], curves["loss"]) == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert (curves["validation/text"], curves["validation/text/step"]) == ([2.5], [2])
    assert "skipped" not in curves


def test_stages_that_were_not_trained_are_named(tmp_path: Path, launcher: Launcher) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "metrics.jsonl", "make stages")):
        read_curves(tmp_path / "metrics.jsonl")
    end = launcher.run("tools/stages/report.py", tmp_path)
    assert (end.code, f"{tmp_path / STAGES[0] / 'metrics.jsonl'}: no such file" in only_error(end)) == (2, True)


def test_every_stage_has_a_config_that_starts_where_the_one_before_ends(root: Path) -> None:
    from oneflow_dist.config import load_config

    folders = [load_config(root / "configs/stages" / f"{stage}.toml") for stage in STAGES]
    assert [config.init.path for config in folders] == ["", *(config.run.folder for config in folders[:-1])]
    assert len({str(config.model) + str(config.modality) for config in folders}) == 1
