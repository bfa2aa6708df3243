from __future__ import annotations

import json
from pathlib import Path

from tests.launching import Launcher


def test_held_out_losses_are_of_each_source_and_by_time(
    trained: Path, spoken: Path, launcher: Launcher, tmp_path: Path
) -> None:
    text = (spoken / "mixture.yaml").read_text().replace("-train-", "-heldout-")
    (tmp_path / "heldout.yaml").write_text(text)
    again = launcher.run("tools/held_out.py", tmp_path / "heldout.yaml", tmp_path / "out", trained, "--samples", "24")
    assert again.code == 0, again.stderr
    report = json.loads((tmp_path / "out/held_out.json").read_text())[str(trained)]
    assert set(report) == {"together", "pair"}
    for losses in report.values():
        assert losses["samples"] == 24
        assert losses["text"] > 0.0
        for velocity in losses["velocity"].values():
            assert len(velocity["by time"]) == 10
            assert 0.0 < velocity["all"] < 10.0
    assert set(report["together"]["velocity"]) == {"image", "sound", "video"}
    assert (tmp_path / "out/held_out.png").stat().st_size > 5000
