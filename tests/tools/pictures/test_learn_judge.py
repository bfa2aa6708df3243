"""A judge learnt from shards of captioned pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.evaluation.metrics.learnt import load_judge
from tests.launching import run_main
from tests.messages import naming
from tests.precompute.making import encode, picture
from tests.tars import write_tar
from tools.pictures import learn_judge


def write_pairs(path: Path, count: int) -> Path:
    """Dark pictures and light ones, and words that say so."""
    files = {}
    for number in range(count):
        shade = "dark" if number % 2 else "light"
        with picture(number).point(lambda value, shade=shade: value // 4 + (0 if shade == "dark" else 190)) as shown:
            files |= {f"{number:03d}.png": encode(shown), f"{number:03d}.txt": f"a {shade} picture".encode()}
    write_tar(path, files)
    return path


def test_what_was_learnt_tells_pictures_apart(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path / "train-000000.tar", 60)
    run_main(learn_judge, tmp_path / "judge", shards)
    judge = load_judge(tmp_path / "judge", "cpu")
    assert {"dark", "light"} <= set(judge.words.words)
    shown = [picture(100).point(lambda value: value // 4), picture(101).point(lambda value: value // 4 + 190)]
    found = judge.compare(shown, ["dark", "light"])
    assert found[0, 0] > found[0, 1]
    assert found[1, 1] > found[1, 0]
    assert np.isfinite(found).all()


def test_too_few_pictures_are_told(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path / "train-000000.tar", 8)
    with pytest.raises(ValueError, match=naming(8, "too few")):
        run_main(learn_judge, tmp_path / "judge", shards)
