"""A run of a few steps on words, pictures, sounds and videos: trained, resumed, judged, sampled, measured."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config, load_config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import Launcher, assert_same_steps, oneflow, only_error, read_metrics
from tests.tools.conftest import SMALL, STEPS_TRAINED
from tools.digits.grammar import WORDS, load_split
from tools.digits.judging import Writer
from tools.sounds.evaluate import judge_documents
from tools.sounds.judging import say
from tools.sounds.variations import DIRECTIONS, STEPS, scroll


def test_every_modality_has_its_loss_in_every_step(trained: Path) -> None:
    for line in read_metrics(trained):
        velocities = {name: line[f"loss/velocity_{name}"] for name in ("image", "sound", "video")}
        assert all(0.1 < loss < 10.0 for loss in velocities.values())
        text = line["loss/zero"] + line["loss/rate"] + line["loss/bag"]
        assert line["loss"] == pytest.approx(text + sum(velocities.values()), rel=1e-6)


def test_a_resumed_run_is_the_unbroken_one(
    trained: Path, sounds_command: Callable[..., list[str]], launcher: Launcher, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints" / f"step-{STEPS_TRAINED:08d}")
    (tmp_path / "run/last_checkpoint").unlink()
    end = launcher.run(*sounds_command(tmp_path / "run"))
    assert end.code == 0, end.stderr
    assert_same_steps(tmp_path / "run", trained)


def test_a_run_that_goes_on_with_other_tokens_is_refused(
    trained: Path, sounds_command: Callable[..., list[str]], launcher: Launcher, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    end = launcher.run(*sounds_command(tmp_path / "run", "modality.sound.token=<|noise|>", "train.steps=6"))
    assert end.code == 2
    assert "modality.sound.token is '<|sound|>' there but '<|noise|>' here" in only_error(end)


def test_what_is_written_is_judged_and_drawn(trained: Path, launcher: Launcher, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    end = launcher.run("tools/sounds/evaluate.py", tmp_path / "run", "--samples", "6")
    assert end.code == 0, end.stderr
    report: dict[str, Any] = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["together"]) == {"whole", "image", "sound", "video", "all", "orders"}
    for part in ("given the word", "to the word"):
        assert set(report[part]) == {"image", "sound", "video"}
        assert all(0.0 <= share <= 1.0 for share in report[part].values())
    with Image.open(tmp_path / "run/documents.png") as page:
        assert page.width > 100


def test_a_run_without_sounds_is_refused(launcher: Launcher, tmp_path: Path, config: Config) -> None:
    end = launcher.run("tools/sounds/evaluate.py", tmp_path)
    assert (end.code, str(tmp_path) in only_error(end)) == (2, True)


def test_sampling_writes_a_picture_a_sound_and_an_animation(
    trained: Path, spoken: Path, launcher: Launcher, tmp_path: Path
) -> None:
    given = ["--piece", f"video={spoken}/seven.apng", "--text", " seven<|image|><|sound|><|video|>"]
    end = launcher.run(*oneflow("sample"), trained, tmp_path / "out", *given)
    assert end.code == 0, end.stderr
    out = tmp_path / "out"
    with Image.open(out / "0000-image-0.png") as picture:
        assert picture.size == (8, 8)
    with wave.open(str(out / "0000-sound-0.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 2816)
    with Image.open(out / "0000-video-0.gif") as given_one, Image.open(out / "0000-video-1.gif") as made:
        assert given_one.size == made.size == (8, 8)
        assert given_one.n_frames == STEPS
    text = "[0000-video-0.gif] seven [0000-image-0.png] [0000-sound-0.wav] [0000-video-1.gif]"
    assert (out / "0000.txt").read_text() == f"{text}\n"
    last = {key: entry["last_step"] for entry in trace(out) for key in entry if key in ("image", "sound", "video")}
    assert last == {"image": 4, "sound": 4, "video": 4}
    assert launcher.run(*oneflow("sample"), trained, out, "--text", "<|sound|>").code == 0  # what lay there goes
    assert sorted(path.name for path in out.iterdir() if "-" in path.name) == ["0000-sound-0.wav"]


def trace(out: Path) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = json.loads((out / "trace.json").read_text())["documents"][0]["tokens"]
    return tokens


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("smell=x.wav", "--piece: 'smell=x.wav' is not NAME=FILE of a modality (image, sound, video)"),
        ("sound=/nowhere/x.wav", "--piece: no such file /nowhere/x.wav"),
    ],
)
def test_a_piece_that_is_none_is_refused(
    option: str, message: str, trained: Path, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run(*oneflow("sample"), trained, tmp_path / "out", "--piece", option)
    assert (end.code, only_error(end)) == (2, f"error: {message}")


def test_digests_are_the_same_on_ranks_and_workers(
    spoken: Path, launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    data = (f"data.mixture={spoken}/mixture.yaml", f"data.tokenizer={spoken}/words.tiktoken", "data.packs_per_step=2")
    ask = (
        *oneflow("inspect"),
        str(root / "configs/sounds.toml"),
        *data,
        *SMALL[8:-4],
        "--steps",
        "0:3",
    )
    lines = [
        launcher.run(*ask, "--world-size", ranks, "--workers", workers).stdout.splitlines()
        for ranks, workers in (("1", "0"), ("2", "0"), ("2", "1"))
    ]
    assert len(lines[0]) == 3
    assert lines[0] == lines[1] == lines[2]
    end = launcher.run(*ask[:-1], "0:1", "--show", tmp_path / "pack.png")
    assert end.code == 0, end.stderr
    with Image.open(tmp_path / "pack.png") as page:
        assert page.height > 300


# What counts as right.


@pytest.fixture(scope="module")
def writer(spoken: Path, root: Path) -> Writer:
    config = load_config(root / "configs/sounds.toml", [f"data.tokenizer={spoken}/words.tiktoken", *SMALL])
    return Writer(OneFlow(config), config, load_tokenizer(config.data.tokenizer, config.modality))


def document(writer: Writer, word: str, digits: dict[str, int]) -> Canvas:
    """A document with a word and pieces that show what is asked for."""
    images, labels = load_split("train")
    tokenizer: Tokenizer = writer.tokenizer
    prompt: list[Any] = [*tokenizer.encode(f" {word}")]
    for kind, digit in digits.items():
        picture = pixels_to_latent(images[labels == digit][0])
        still = np.repeat(picture[:, None], STEPS, axis=1)
        moved = scroll(still, DIRECTIONS[0])
        latent = {"image": picture, "sound": say(digit, np.random.default_rng(0)), "video": moved}[kind]
        prompt.append((kind, latent.astype(np.float32)))
    return blank_canvas(prompt, tokenizer, writer.config.modality, 0, 0)


def test_a_right_document_counts_and_each_kind_of_wrong_one_does_not(writer: Writer) -> None:
    right = {"image": 3, "sound": 3, "video": 3}
    assert judge_documents([document(writer, WORDS[3], right)], writer) == {
        "whole": 1.0, "image": 1.0, "sound": 1.0, "video": 1.0, "all": 1.0, "orders": 1.0
    }  # fmt: skip
    for kind in right:
        report = judge_documents([document(writer, WORDS[3], {**right, kind: 8})], writer)
        assert (report["whole"], report["all"], report[kind]) == (1.0, 0.0, 0.0)
        lacking = {other: digit for other, digit in right.items() if other != kind}
        report = judge_documents([document(writer, WORDS[3], lacking)], writer)
        assert (report["whole"], report["all"], report[kind]) == (0.0, 0.0, 0.0)
    assert judge_documents([document(writer, "three four", right)], writer)["whole"] == 0.0
