from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.commands import curves
from tests.launching import Launcher, oneflow, only_error, run_main
from tests.messages import names


def write_run(folder: Path, level: float, every_steps: int = 4) -> Path:
    """A made-up run of 12 steps, with held-out losses of two sources, of which one is text."""
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, 13):
        lines.append({"step": step, "loss": level + 1.0 / step})
        if every_steps and step % every_steps == 0:
            values: dict[str, float] = {}
            for kind in ("validation", "validation_ema"):
                for source in ("notes", "pairs"):
                    keys = ["loss", "text", *(f"text/time_{n}" for n in range(4)), "text/missing_0", "text/missing_3"]
                    if source == "pairs":
                        keys += ["velocity_image", *(f"velocity_image/time_{n}" for n in range(4))]
                    values |= {f"{kind}/{source}/{key}": level + 2.0 / step for key in keys}
            lines.append({"step": step, **values, "validation/seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("num_runs", [1, 2])
def test_runs_are_drawn_and_their_last_losses_printed(
    num_runs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"run{number}", 1.0 + number) for number in range(num_runs)]
    run_main(curves, *runs, tmp_path / "new/curves.png")
    *table, last = capsys.readouterr().out.splitlines()
    assert names(last, tmp_path / "new/curves.png")
    expected = [
        (f"run{n}", source, f"{1.0 + n + 2.0 / 12:.4f}") for n in range(num_runs) for source in ("notes", "pairs")
    ]
    assert len(table) == len(expected)
    assert all(
        names(line, run, 12, source, "text", value) for line, (run, source, value) in zip(table, expected, strict=True)
    )
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_a_run_without_held_out_losses_is_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_main(curves, write_run(tmp_path / "run", 1.0, every_steps=0), tmp_path / "curves.png")
    assert names(capsys.readouterr().out.splitlines()[0], "run", "validation.mixture", "validation.every_steps")


def test_the_training_loss_is_an_average_over_stretches(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1000)]
    steps, values = curves.smooth(lines)
    assert len(steps) == curves.SMOOTHED
    assert np.allclose(values, 0.5)
    assert np.all(np.diff(steps) > 0)


def test_a_folder_without_a_run_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("curves"), tmp_path, tmp_path / "curves.png")
    assert names(only_error(end), tmp_path / "metrics.jsonl")


def test_two_runs_of_one_name_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [write_run(tmp_path / name / "run", 1.0) for name in ("a", "b")]
    assert names(only_error(launcher.run(*oneflow("curves"), *runs, tmp_path / "curves.png")), *runs)
