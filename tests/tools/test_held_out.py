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
        assert {"loss", "text", "text/time_0", "text/missing_4"} <= set(losses)
        assert all(0.0 < value < 100.0 for value in losses.values())
    kinds = {name for name in report["together"] if name.startswith("velocity_") and "/" not in name}
    assert kinds == {"velocity_image", "velocity_sound", "velocity_video"}
    assert (tmp_path / "out/held_out.png").stat().st_size > 5000
