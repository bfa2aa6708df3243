from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launching import Launcher, only_error, run_main
from tests.messages import names
from tests.tools.comparison.made_up import CONFIGS, STEP_FLOPS, plan, write_run
from tools import compare

SHARES = ("--shares", "0.25", "0.5", "1")


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all runs of two configs, of which no step has to be counted or timed."""
    monkeypatch.setattr(compare, "count_flops", lambda _: STEP_FLOPS)
    names = ["quickstart", "masked_quickstart"]
    for run in plan(tmp_path, names=names, steps=12):
        write_run(run)
    (tmp_path / "pace.json").write_text(json.dumps(dict.fromkeys(names, 0.5)))
    return tmp_path


def test_finished_runs_become_tables_a_picture_and_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = CONFIGS["quickstart"], CONFIGS["masked_quickstart"]
    run_main(compare, finished, *configs, "--steps", "12", "--seeds", "0", "1", *SHARES)
    first, second, kept, last = capsys.readouterr().out.splitlines()
    assert names(first, "quickstart", "5.000")
    assert names(second, "masked_quickstart", "5.000")
    assert names(kept, 12, 0)
    assert names(last, finished, "comparison.md", ".json", ".png", 2)
    told = json.loads((finished / "comparison.json").read_text())
    assert f"--steps 12 --seeds 0 1 {' '.join(SHARES)}" in told["command"]
    assert {"device", "torch", "platform", "commit", "date"} <= set(told["machine"])
    assert told["configs"]["quickstart"]["flops_per_step"] == STEP_FLOPS
    markdown = (finished / "comparison.md").read_text()
    assert all(run["folder"].startswith(str(finished)) for run in told["configs"]["quickstart"]["runs"])
    assert "| objective | insertion | masked |" in markdown
    with Image.open(finished / "comparison.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shares", "0"), ("--shares", "0.0")),
        (("--shares", "0.5", "-1"), ("--shares", "-1.0")),
        (("--shares", "1", "1.0"), ("--shares", "1 1")),
        (("--seeds", "0", "0"), ("--seeds", "0 0")),
        (("--seeds", "-1"), ("--seeds", "-1")),
        (("--jobs", "0"), ("--jobs", "0")),
        (("--samples", "1"), ("--samples", "1")),
        (("--steps", "-5"), ("--steps", "-5")),
        (("--set", "optim.lrr=1"), ("optim.lrr", "optim.lr")),
        (("--set", "train.steps=5"), ("--set", "train.steps=5", "--steps")),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: tuple[str, ...], said: tuple[str, ...], launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run("tools/compare.py", tmp_path / "out", CONFIGS["quickstart"], *arguments)
    assert names(only_error(end), *said)
    assert end.code == 2
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/compare.py", tmp_path / "out", tmp_path / "none.toml")
    assert names(only_error(end), tmp_path / "none.toml")
    assert end.code == 2


def test_two_configs_of_one_name_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    copy = tmp_path / "quickstart.toml"
    copy.write_text(CONFIGS["quickstart"].read_text())
    end = launcher.run("tools/compare.py", tmp_path / "out", CONFIGS["quickstart"], copy)
    assert names(only_error(end), CONFIGS["quickstart"], copy)
    assert end.code == 2
