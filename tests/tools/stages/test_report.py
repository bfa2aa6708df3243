from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.data.mixture import load_mixture
from tests.launching import Launcher, only_error
from tests.messages import names
from tools.stages.judging import LEARNT, QUESTIONS
from tools.stages.report import STAGES


def test_stages_that_were_not_trained_are_named(tmp_path: Path, launcher: Launcher) -> None:
    end = launcher.run("tools/stages/report.py", tmp_path)
    assert (end.code, names(only_error(end), tmp_path / STAGES[0] / "metrics.jsonl")) == (2, True)


def test_every_stage_has_a_config_that_starts_where_the_one_before_ends(root: Path) -> None:
    from oneflow_dist.config import load_config

    folders = [load_config(root / "configs/stages" / f"{stage}.toml") for stage in STAGES]
    assert [config.init.path for config in folders] == ["", *(config.run.folder for config in folders[:-1])]
    assert len({str(config.model) + str(config.modality) for config in folders}) == 1


def test_what_is_guessed_is_learnt_from_the_same_questions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    held_out, learnt = load_mixture(QUESTIONS), load_mixture(LEARNT)
    assert [(source.name, source.filters) for source in held_out] == [
        (source.name, source.filters) for source in learnt
    ]
    assert [source.shards.replace("heldout", "train") for source in held_out] == [source.shards for source in learnt]
