"""oneflow precompute beside the bare encoder."""

from __future__ import annotations

from pathlib import Path

from tests.launching import Launcher
from tests.precompute.making import save_autoencoder, write_shards
from tools.benchmark.precompute import BARE, OURS, RATE
from tools.benchmark.result import read_results


def test_the_result_has_both_rates(launcher: Launcher, tmp_path: Path) -> None:
    vae, shards = save_autoencoder(tmp_path / "vae"), write_shards(tmp_path, num_shards=1)
    words = ["precompute", *shards, "--autoencoder", vae, "--size=32", "--rounds=1"]
    end = launcher.run("-m", "tools.benchmark", *words, "--output", tmp_path / "out")
    assert end.code == 0, end.stderr
    (result,) = read_results(tmp_path / "out")
    rates = result.measured.series[RATE]
    assert result.measured.numbers["overhead, median"] == rates[BARE][0] / rates[OURS][0] - 1.0
