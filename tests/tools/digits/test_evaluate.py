from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.launching import Launcher, Run, only_error


@pytest.fixture(scope="module")
def evaluated(launcher: Launcher, unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 20 steps, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(unbroken.folder, folder)
    return Run(
        folder, launcher.run("tools/digits/evaluate.py", folder, "--samples", "8", "--steps", "4", "--solver", "heun")
    )


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_report_of_a_run_has_all_its_numbers(evaluated: Run) -> None:
    assert evaluated.end.code == 0, evaluated.end.stderr
    report: dict[str, Any] = json.loads((evaluated.folder / "report.json").read_text(), parse_constant=refuse)
    assert list(report) == [
        *("steps", "train_seconds", "padding", "num_parameters", "num_samples", "sampling"),
        *("single", "both", "interleaved", "prompted"),
    ]
    assert set(report["single"]) == set(report["both"]) == {"valid_text", "has_image", "agreement"}
    assert report["both"]["has_image"] > 0.0  # it is there from the start, and needs no luck
    assert set(report["interleaved"]) == {"valid_text", "has_image", "agreement", "documents_right"}
    assert set(report["prompted"]) == {"text_to_image", "distance", "image_to_text"}
    assert report["steps"] == 20
    assert report["num_parameters"] > 100_000
    for section in ("single", "both", "interleaved", "prompted"):
        assert all(0.0 <= share <= 1.0 for key, share in report[section].items() if key != "distance")
    assert report["prompted"]["distance"] > 0.0
    assert report["num_samples"] == 8
    assert [report["sampling"][key] for key in ("steps", "solver", "guidance")] == [4, "heun", {"image": 2.0}]


def test_the_report_is_printed_and_the_pages_are_named(evaluated: Run) -> None:
    printed = evaluated.end.stdout
    kinds = [line.split()[0] for line in printed.splitlines()[1:6]]
    assert kinds == ["single", "both", "interleaved", "text_to_image", "image_to_text"]
    body = printed[printed.index("{") : printed.rindex("}") + 1]
    assert json.loads(body) == json.loads((evaluated.folder / "report.json").read_text())
    folder = evaluated.folder
    *_, wrote, _, serve, sample, describe, train = printed.splitlines()
    assert wrote == f"wrote {folder / 'report.json'} and {folder / 'gallery.png'}"
    assert f"oneflow serve {folder}" in serve  # what to type next
    assert f"oneflow sample {folder} out" in sample
    assert f"oneflow sample {folder} out --image" in describe
    assert "oneflow train configs/quickstart.toml" in train


def test_an_evaluation_warns_of_nothing(evaluated: Run) -> None:
    assert evaluated.end.stderr == ""


def test_the_gallery_of_a_run_is_a_page(evaluated: Run) -> None:
    with Image.open(evaluated.folder / "gallery.png") as page:
        assert page.width > 1000
        assert page.height > 500
        assert (np.asarray(page.convert("L")) < 100).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples: 1 must lie in [2, inf)"),
        (["--steps", "0"], "--steps: 0 must lie in [1, inf)"),
        (["--guidance", "3"], "--guidance: '3' is not NAME=WEIGHT, as image=3"),
        ([], "{folder}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_one_line(
    arguments: Sequence[str], message: str, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run("tools/digits/evaluate.py", tmp_path, *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message.format(folder=tmp_path)}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_metrics_is_refused_before_documents_are_generated(launcher: Launcher, unbroken: Run) -> None:
    folder = unbroken.folder / "checkpoints/step-00000010"  # a checkpoint, not the folder of a run
    end = launcher.run("tools/digits/evaluate.py", folder, "--samples", "2", "--steps", "2")
    assert end.code == 2
    assert "metrics.jsonl" in only_error(end)
    assert end.stdout == ""
