from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.launching import Launcher, Run, only_error
from tests.messages import names
from tools.styles.evaluate import WAYS, measure
from tools.styles.grammar import Style

ASK = ("--captions", "6", "--weights", "0", "1", "2.5")


def test_captions_are_measured_at_every_weight_and_drawn(runs: Path, launcher: Launcher, tmp_path: Path) -> None:
    shutil.copytree(runs / "described", tmp_path / "run")
    end = launcher.run("tools/styles/evaluate.py", tmp_path / "run", *ASK)
    assert (end.code, end.stderr) == (0, "")
    report: dict[str, Any] = json.loads((tmp_path / "run/guidance.json").read_text())
    lines = report.pop("data")
    assert 2.0 <= lines["all there is to tell"] <= 4.0
    assert list(report) == list(WAYS)
    for by_weight in report.values():
        assert list(by_weight) == ["0.0", "1.0", "2.5"]
        for found in by_weight.values():
            assert list(found) == ["right", "wrong", "sentences", *Style._fields]
            assert all(low <= mean <= high for mean, low, high in found.values())
    unguided = [by_weight["1.0"] for by_weight in report.values()]
    assert unguided[0] == unguided[1]
    with Image.open(tmp_path / "run/guidance.png") as plot:
        assert plot.width > 1000
    assert end.stdout.splitlines()[-1].startswith("wrote ")


def test_statements_sentences_and_attributes_are_counted_apart() -> None:
    seen = Style("dim", "seven", "grey")
    found = measure(["a dim seven", "a bright seven on grey", "dim dim", "a digit with a left edge"], [seen] * 4)
    means = {name: mean for name, (mean, _, _) in found.items()}
    assert means == {
        "right": 5 / 4, "wrong": 2 / 4, "sentences": 3 / 4, "tone": 2 / 4, "digit": 2 / 4, "ground": 1 / 4, "edge": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "1"], "--captions: 1 must lie in [2, inf)"),
        (["--weights", "inf"], "--weights: inf must lie in (-inf, inf)"),
        (["--weights", "nan"], "--weights: nan must lie in (-inf, inf)"),
        ([], "{folder}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_one_line(
    arguments: list[str], message: str, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run("tools/styles/evaluate.py", tmp_path, *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message.format(folder=tmp_path)}")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_something_else_is_refused(unbroken: Run, launcher: Launcher) -> None:
    end = launcher.run("tools/styles/evaluate.py", unbroken.folder, *ASK)
    assert end.code == 2
    assert names(only_error(end), unbroken.folder, "configs/styles.toml")
