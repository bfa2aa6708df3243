from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.tools.benchmark.made_up import LINES, MACHINE, product, step
from tools.benchmark.drawing import FLOAT8, OURS, PEER, draw, draw_memory, draw_rates, draw_shares
from tools.benchmark.report import rated


def colours_of(path: Path) -> set[str]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0)}


def test_ours_float8_and_the_peer_are_told_apart(tmp_path: Path) -> None:
    draw(LINES, tmp_path)
    assert {OURS, FLOAT8, PEER} <= colours_of(tmp_path / "steps.png")


def test_a_picture_has_a_panel_for_each_case(tmp_path: Path) -> None:
    draw(LINES, tmp_path)
    with Image.open(tmp_path / "contests.png") as image:
        assert image.size == (1680, 520)
    assert {OURS, PEER} <= colours_of(tmp_path / "contests.png")


def test_what_there_are_no_numbers_for_is_not_drawn(tmp_path: Path) -> None:
    draw([MACHINE | {"vendor_bf16_tflops": None}, step("ours bf16 eager none", peak_gib=None)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"steps.png"}


def test_bars_are_as_long_as_the_numbers() -> None:
    name = "ours bf16 compiled none"
    plan = {"kind": "plan", "name": "plan bf16 none", "peak_gib": 60.0}
    entries = rated([MACHINE, product(800.0), plan, step(name, 1e4), step(name, 2e4)])
    rates, shares, memory = Figure().subplots(1, 3)
    draw_rates(rates, {name: entries})
    draw_shares(shares, {name: entries})
    draw_memory(memory, {name: entries})
    assert [patch.get_width() for patch in rates.patches] == [pytest.approx(15.0)]
    assert [patch.get_width() for patch in shares.patches] == [pytest.approx(40.0)]
    assert [patch.get_width() for patch in memory.patches] == [60.0, 50.0]  # planned, measured
