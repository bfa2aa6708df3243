from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.launching import Launcher, Run


def test_the_rungs_of_a_suite_are_scored_and_drawn(
    launcher: Launcher,
    evaluated: Run,
    suite_path: Path,
    suite_text: str,
    tmp_path: Path,
) -> None:
    one = tmp_path / "one.toml"
    one.write_text(suite_text[: suite_text.index("[task.count]")])  # a choice has no ladder
    end = launcher.run("tools/ladder.py", one, tmp_path / "out", f"trained={evaluated.folder}")
    assert end.code == 0, end.stderr
    ladder = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert ladder["rungs"] == ["shuffled", "trained", "data"]
    own = ladder["tasks"]["paint"]["agreement"]
    assert own["data"]["value"] == 1.0 > own["trained"]["value"]
    assert ladder["tasks"]["describe"]["cider"]["data"]["value"] > 5.0
    assert "agreement" in end.stdout
    with Image.open(tmp_path / "out" / "ladder.png") as page:
        assert np.asarray(page.convert("L")).std() > 1.0


def test_a_model_without_a_name_is_refused(launcher: Launcher, suite_path: Path, tmp_path: Path) -> None:
    end = launcher.run("tools/ladder.py", suite_path, tmp_path / "out", "runs/quickstart")
    assert end.code == 2
    assert "runs/quickstart" in end.stderr
