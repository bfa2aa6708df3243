from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.precompute.sheet import draw_sheet, peak_ratio
from tests.precompute.making import make_tools, run, write_shards, write_tar


def test_the_peak_ratio_is_that_of_the_mean_square() -> None:
    zeros = np.zeros((3, 2, 2), dtype=np.float32)
    assert peak_ratio(zeros, zeros) == math.inf
    assert peak_ratio(zeros, zeros + np.float32(0.2)) == pytest.approx(20.0, abs=1e-3)
    assert peak_ratio(zeros, zeros + np.float32(2.0)) == pytest.approx(0.0, abs=1e-3)


def test_a_sheet_shows_twelve_pictures(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "raw", num_shards=5)
    run(shards, tmp_path / "out")
    data = draw_sheet(tmp_path / "out", shards, make_tools())
    assert data is not None
    assert data == (tmp_path / "out" / "contact_sheet.png").read_bytes()
    with Image.open(io.BytesIO(data)) as sheet:
        assert sheet.width > 4 * 160
        assert sheet.height > 3 * 160


def test_text_has_no_sheet(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("0.txt", b"text")])
    run([shard], tmp_path / "out")
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    assert (tmp_path / "out" / "manifest.json").exists()
