from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.launching import Launcher, Run, only_error
from tests.messages import names


@pytest.mark.parametrize(("option", "value"), [("--samples", "0"), ("--longest", "0"), ("--steps", "0")])
def test_numbers_out_of_range_are_refused(launcher: Launcher, tmp_path: Path, option: str, value: str) -> None:
    end = launcher.run("tools/counting/evaluate.py", tmp_path, option, value)
    assert end.code == 2
    assert names(only_error(end), option, value)


def test_a_run_is_judged_and_drawn(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    """A model that has learnt nothing yet: what is not written is untouched even so."""
    folder = tmp_path / "run"
    folder.symlink_to(unbroken.folder)
    sizes = ("--samples", "3", "--longest", "6", "--steps", "3", "--max-rows", "64")
    end = launcher.run("tools/counting/evaluate.py", folder, *sizes)
    assert end.code == 0, end.stderr
    report = json.loads((folder / "counting.json").read_text())
    for what in ("word anew", "image anew", "image in place anew"):
        assert report[what]["untouched"] == 1.0
    assert report["variations"]["0.8"]["distance"] < report["variations"]["0.0"]["distance"]
    assert sum(report["blocks"]["by_length"]) == sum(report["whole"]["by_length"]) == 3
    assert report["whole"]["rows"] > 0
    with Image.open(folder / "counting.png") as page:
        assert page.width > 600
