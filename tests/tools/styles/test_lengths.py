from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.launching import Launcher, only_error
from tests.messages import names
from tools.styles.evaluate import load_writer
from tools.styles.lengths import LONGEST, distance, law_of, mean_length, measure_overdispersion, write_captions


def test_lengths_are_measured_for_every_way_and_drawn(runs: Path, launcher: Launcher, tmp_path: Path) -> None:
    ask = ("--captions", "6", "--steps", "2", "3", "--shares", "0.5")
    end = launcher.run("tools/styles/lengths.py", tmp_path / "out", runs / "timeless", runs / "described", *ask)
    assert (end.code, end.stderr) == (0, "")
    report: dict[str, Any] = json.loads((tmp_path / "out/lengths.json").read_text())
    assert mean_length(report.pop("data")) == pytest.approx(4.7, abs=0.5)
    own = next(way for way in report if "its own" in way)
    assert set(report) == {
        "timeless: heads know no time", "timeless: clock share 0.5", own, "described: heads know the time"
    }  # fmt: skip
    for laws in report.values():
        assert list(laws) == ["2", "3"]
        assert all(sum(law) == pytest.approx(1.0) for law in laws.values())
    with Image.open(tmp_path / "out/lengths.png") as plot:
        assert plot.width > 1000


def test_a_law_has_a_mean_and_a_distance_to_another() -> None:
    law = law_of([2, 2, 4, 1000])
    assert len(law) == LONGEST + 1
    assert mean_length(law) == (2 + 2 + 4 + LONGEST) / 4
    assert distance(law, law) == 0.0
    assert distance(law, law_of([3])) == 1.0
    assert distance(law, law_of([2])) == 0.5


def test_a_model_that_expects_nothing_is_as_wrong_of_a_text_as_the_square_of_its_sum(runs: Path) -> None:
    writer = load_writer(runs / "timeless")
    torch.nn.init.constant_(writer.model.heads.zero.get_parameter("bias"), 100.0)
    found = measure_overdispersion(writer, write_captions(400))
    assert 1.1 < found < 2.0  # (sum of k)^2 over the sum of k^2: early, a text has few slots that miss much


def test_runs_of_one_name_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/styles/lengths.py", tmp_path / "out", tmp_path / "a/run", tmp_path / "b/run")
    assert end.code == 2
    assert names(only_error(end), tmp_path / "a/run", tmp_path / "b/run", "rename")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "0"], "--captions: 0 must lie in [1, inf)"),
        (["--steps", "4", "0"], "--steps: 0 must lie in [1, inf)"),
        (["--shares", "1.5"], "--shares: 1.5 must lie in [0, 1]"),
        ([], "{run}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_one_line(
    arguments: list[str], message: str, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run("tools/styles/lengths.py", tmp_path / "out", tmp_path / "run", *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message.format(run=tmp_path / 'run')}")
    assert list(tmp_path.iterdir()) == []
