from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from oneflow_dist.evaluation.answers import read_png
from oneflow_dist.evaluation.page import draw_answer, draw_page
from oneflow_dist.evaluation.report import load_items
from oneflow_dist.evaluation.suite import Suite
from tests.launching import Run


def test_a_page_shows_every_task(evaluated: Run, suite: Suite, tmp_path: Path) -> None:
    assert evaluated.end.code == 0, evaluated.end.stderr
    report = json.loads((evaluated.folder / "report.json").read_text())
    items = load_items(suite)
    draw_page(tmp_path / "all.png", suite, evaluated.folder, items, report)
    assert (tmp_path / "all.png").read_bytes() == (evaluated.folder / "page.png").read_bytes()
    heights = []
    for name in suite.task:
        one = Suite(suite=suite.suite, task={name: suite.task[name]})
        draw_page(tmp_path / "one.png", one, evaluated.folder, items, report)
        page = read_png(tmp_path / "one.png")
        assert np.asarray(page.convert("L")).std() > 1.0
        heights.append(page.height)
    assert read_png(tmp_path / "all.png").height > max(heights)


def test_a_given_picture_stands_before_a_written_text(suite: Suite, tmp_path: Path) -> None:
    (item, *_) = load_items(suite)["describe"]
    row = np.asarray(draw_answer(item, tmp_path, ()).convert("L"))
    assert row.shape[0] >= 64
    assert row[:64, :64].min() < 128  # the digit
