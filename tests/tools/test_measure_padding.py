"""tools/measure_padding.py: how full the packs of a run are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import measure_padding
from oneflow_dist.config import Config, write_config


def test_packs_of_digits_have_less_than_three_percent_padding(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(write_config(make_config()))
    monkeypatch.setattr("sys.argv", ["measure_padding", str(path), "--steps", "3", "data.packs_per_step=2"])
    measure_padding.main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("6 packs of 2048 rows: padding ")
    assert float(first.rpartition(" ")[2].rstrip("%")) < 3.0
    assert "samples a pack" in second
    assert third.endswith(" rows/s")
