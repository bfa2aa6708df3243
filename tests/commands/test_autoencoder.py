from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from oneflow_dist.commands import autoencoder
from oneflow_dist.commands.autoencoder_training import make_autoencoder, open_images
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.signals import StopSignals
from tests.launching import Job, Launcher, oneflow, only_error
from tests.processes import wait_until
from tests.tools.gradients import write_shard, write_shards

TINY = ["--size", "16", "--widths", "8,8,8,8", "--channels", "4", "--batch", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def train(shards: str) -> Callable[..., None]:
    """Runs the tool in this process."""

    def run(folder: Path, *arguments: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["oneflow autoencoder", str(folder), shards, *TINY, *arguments])
            patch.setenv("OMP_NUM_THREADS", "1")  # as all programs of tests have it
            make_autoencoder(autoencoder.parse_arguments(), StopSignals())

    return run


@pytest.fixture(scope="module")
def trained(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "new" / "autoencoder"
    train(folder, "--steps", "120", "--val-size", "16", "24")
    return folder


def read_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def test_the_folder_is_whole_and_nothing_is_left_beside_it(trained: Path) -> None:
    files = {"config.json", "diffusion_pytorch_model.safetensors", "metrics.json", "reconstructions.png"}
    assert {path.name for path in trained.iterdir()} == files
    assert [path.name for path in trained.parent.iterdir()] == ["autoencoder"]
    with Image.open(trained / "reconstructions.png") as picture:
        assert picture.width > 2 * 128
    metrics = read_metrics(trained)
    assert (metrics["images"], metrics["val_images"]) == (18, 2)
    assert set(metrics["psnr_db"]) == {"16", "24"}
    assert metrics["steps"] == metrics["settings"]["steps"] == 120


def test_training_improves_the_reconstruction(trained: Path, train: Callable[..., None], tmp_path: Path) -> None:
    train(tmp_path / "short", "--steps", "1")
    before, after = (read_metrics(folder) for folder in (tmp_path / "short", trained))
    assert after["loss"] < 0.6 * before["loss"]
    assert after["psnr_db"]["16"] > before["psnr_db"]["16"] + 2.0


def test_scaled_latents_have_mean_zero_and_variance_one(trained: Path, shards: str) -> None:
    autoencoder = load_autoencoder(str(trained), "cpu", torch.float32)
    images, _ = open_images([shards], [], seed=0)
    mean, std = autoencoder.encode(images.read_batch(range(len(images)), 16))
    latents = (mean - autoencoder.shift_factor) * autoencoder.scaling_factor
    assert abs(latents.mean().item()) < 0.15  # the statistics are of random crops
    assert (latents.square() + (std * autoencoder.scaling_factor).square()).mean().item() == pytest.approx(
        1.0, abs=0.15
    )
    assert (autoencoder.channels, autoencoder.downsample) == (4, 8)


def test_the_same_seed_gives_the_same_weights(train: Callable[..., None], tmp_path: Path) -> None:
    for name, seed in (("first", "0"), ("second", "0"), ("other", "1")):
        train(tmp_path / name, "--steps", "2", "--seed", seed)
    first, second, other = (
        (tmp_path / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in ("first", "second", "other")
    )
    assert first == second
    assert first != other


def test_a_folder_that_exists_is_refused(launcher: Launcher, shards: str, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("autoencoder"), tmp_path, shards)
    assert (end.code, only_error(end)) == (2, f"error: {tmp_path} exists; name a new folder or remove it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: 0 must lie in [1, inf)"),
        (["--kl-weight", "-1"], "--kl-weight: -1.0 must lie in [0, inf)"),
        (["--lr", "inf"], "--lr: inf must lie in (0, inf)"),
        (["--seed", "-1"], "--seed: -1 must lie in [0, 2^63)"),
        (["--size", "20"], "size 20: must be a multiple of 8, what 4 levels divide by"),
        (["--val-size", "12"], "size 12: must be a multiple of 8, what 4 levels divide by"),
        (["--val", "nowhere.tar"], "source images: no such shard nowhere.tar"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    arguments: list[str], message: str, train: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        train(tmp_path / "new" / "out", *arguments)
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_fails_the_run_and_leaves_no_folder(train: Callable[..., None], tmp_path: Path) -> None:
    broken = write_shard(tmp_path / "a.tar", [{"png": b"not a picture"}])
    with pytest.raises(ValueError, match=r"^images/a/0\d+\.png: its picture is .*; write it again"):
        train(tmp_path / "out", "--steps", "1", "--val", broken)  # found after the training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.tar.index"]


def test_a_loss_that_is_not_finite_ends_the_run(train: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"^step \d+: loss is (nan|inf); lower --lr \(1e\+18\)$"):
        train(tmp_path / "out", "--steps", "20", "--lr", "1e18")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def training(launcher: Launcher, shards: str, tmp_path: Path) -> Job:
    """A long training that has begun."""
    job = launcher.start(*oneflow("autoencoder"), tmp_path / "out", shards, *TINY, "--steps", "100000")
    _, stderr = job.streams[0]
    wait_until(lambda: stderr.exists() and "step/s" in stderr.read_text(), "its first steps")
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_is_written_as_it_is(training: Job, number: signal.Signals, tmp_path: Path) -> None:
    os.kill(training.pids[0], number)
    (end,) = training.wait()
    assert end.code == 0, end.stderr
    num_steps = read_metrics(tmp_path / "out")["steps"]
    assert 0 < num_steps < 100000
    assert f"stopped after {num_steps} of 100000 steps" in end.stdout
    assert load_autoencoder(str(tmp_path / "out"), "cpu", torch.float32).channels == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_run_leaves_no_folder(training: Job, tmp_path: Path) -> None:
    training.kill()
    assert training.wait()[0].code == -9
    assert not (tmp_path / "out").exists()
