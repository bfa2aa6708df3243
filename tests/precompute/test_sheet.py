from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from oneflow_dist.precompute.sheet import draw_sheet
from tests.precompute.making import make_tools, run, write_shards, write_tar


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
