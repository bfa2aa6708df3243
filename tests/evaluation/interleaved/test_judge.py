from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.interleaved.judge import Judge
from tests.evaluation.interleaved.made_up import ICONS, paint
from tests.messages import naming
from tools.interleaved.icons import all_boards


def write_label(folder: Path, name: str, *pictures: Image.Image) -> None:
    (folder / name).mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / name / f"{number}.png")


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0.0, 12.0, (16, 16, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def test_every_labelled_picture_is_read_as_its_label_with_and_without_noise(judge: Judge) -> None:
    labels = sorted(set(judge.labels))
    pairs = [(label, Image.fromarray(board)) for label in labels for board in all_boards(ICONS, label)]
    assert len(pairs) == len(judge.labels) == 30 * (4 + 6 + 4)
    truth = [label for label, _ in pairs]
    assert judge.read([picture for _, picture in pairs]) == truth
    assert judge.read([noisy(picture, seed) for seed, (_, picture) in enumerate(pairs)]) == truth


def test_larger_pictures_are_resized(judge: Judge) -> None:
    large = paint("three green rabbit").resize((64, 64), Image.Resampling.NEAREST)
    assert judge.read([large]) == ["three green rabbit"]


def test_of_no_picture_nothing_is_read(judge: Judge) -> None:
    assert judge.read([]) == []


def test_folders_are_called_by_their_labels(tmp_path: Path) -> None:
    write_label(tmp_path, "one_red_fish", paint("one red fish", 0), paint("one red fish", 1))
    write_label(tmp_path, "zero", Image.new("L", (16, 16), 255))
    judge = Judge.of(tmp_path)
    assert (judge.labels, judge.size) == (("one red fish", "one red fish", "zero"), (16, 16))
    assert judge.read([paint("one red fish", 1), Image.new("1", (16, 16), 1)]) == ["one red fish", "zero"]


def test_one_label_is_no_choice(tmp_path: Path) -> None:
    write_label(tmp_path, "one", paint("one red fish"))
    with pytest.raises(ValueError, match=naming(tmp_path, 1)):
        Judge.of(tmp_path)


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_label(tmp_path, "one", paint("one red fish"))
    write_label(tmp_path, "two", Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match=naming(tmp_path, 2)):
        Judge.of(tmp_path)


def test_a_broken_labelled_picture_is_named(tmp_path: Path) -> None:
    write_label(tmp_path, "one", paint("one red fish"))
    write_label(tmp_path, "two", paint("two red fish"))
    (tmp_path / "two" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=naming(tmp_path / "two" / "0.png")):
        Judge.of(tmp_path)
