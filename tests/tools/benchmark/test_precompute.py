"""tools/benchmark/precompute.py: the tool beside the bare encoder."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launching import Launcher
from tests.precompute.making import save_autoencoder, write_shards


def test_the_result_has_both_rates(launcher: Launcher, tmp_path: Path) -> None:
    vae, shards = save_autoencoder(tmp_path / "vae"), write_shards(tmp_path, num_shards=1)
    result = tmp_path / "result.json"
    arguments = (*shards, "--autoencoder", vae, "--size", "32", "--rounds", "1", "--output", result)
    end = launcher.run("tools/benchmark/precompute.py", *arguments)
    assert end.code == 0, end.stderr
    table = json.loads(result.read_text())
    assert table["overhead"] == table["bare"][0] / table["whole"][0] - 1.0
    assert end.stdout.startswith("bare forward, batches in memory")
