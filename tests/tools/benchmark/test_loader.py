"""tools/benchmark/loader.py: the loader beside webdataset."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launching import Launcher


def test_the_result_has_rates_fill_and_memory(launcher: Launcher, tmp_path: Path) -> None:
    sizes = ("--samples", "1024", "--rounds", "1", "--passes", "1")
    end = launcher.run("tools/benchmark/loader.py", *sizes, "--output", tmp_path / "result.json")
    assert end.code == 0, end.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["samples_per_second"]) == {"webdataset", "decode", "ours"}
    assert result["fill"] > 0.9
    assert result["resident_mib"][0] > 0
