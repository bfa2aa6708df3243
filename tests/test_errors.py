from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.containers import Counts, PackedBatch
from tests.launching import (
    Launcher,
    Run,
    only_error,
    read_checkpoint,
    read_metrics,
    run_python,
    without_timings,
)
from tests.messages import names
from tests.tars import npy, write_tar

TrainCommand = Callable[..., list[str]]


def test_a_mistyped_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    end = run_python("-m", "oneflow_dist.train", "configs/debug.toml", "model.widht=3")
    assert (end.code, end.stdout) == (2, "")
    assert names(only_error(end), "error: model.widht", "model.width")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("modle.width=3", ("modle", "model")),
        ("train.steps=many", ("train.steps", "int", "'many'")),
        ("data.overlong=cut", ("data.overlong", "'cut'", "'error'", "'drop'", "'window'")),
        ("train.steps", ("'train.steps'", "section.key=value")),
        ("parallel.shard=3", ("parallel", 1, 3, 1, 3, "WORLD_SIZE", 1, "parallel.shard = 1")),
        ("data.mixture=nowhere.yaml", ("nowhere.yaml", "data.mixture")),
        ("data.tokenizer=nowhere.tiktoken", ("nowhere.tiktoken", "data.tokenizer", '"bytes"')),
    ],
)
def test_a_bad_config_ends_the_run_before_it_writes(
    override: str, named: tuple[object, ...], launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    end = launcher.run(*train_command(tmp_path / "run", override))
    assert end.code == 2
    assert names(end.stderr, "error:", *named)
    assert not (tmp_path / "run").exists()


def test_pictures_by_another_autoencoder_than_that_of_the_data_are_refused(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    made_by = {"name": "vae", "config_sha256": "c", "weights_sha256": "w", "scaling_factor": 1.0, "shift_factor": 0.0}
    latents = {
        f"{n}.{kind}": npy(np.zeros((2, 1, 8, 8))) if kind == "npy" else b"a"
        for n in range(4)
        for kind in ("npy", "txt")
    }
    write_tar(tmp_path / "digits.tar", latents, {"autoencoder": made_by})
    end = launcher.run(*train_command(tmp_path / "run", f"data.mixture={write_mixture(tmp_path, 'digits.tar')}"))
    assert end.code == 2
    assert names(only_error(end), "modality.image.codec", "pixels", "vae")
    assert not (tmp_path / "run").exists()


def test_ranks_that_are_more_than_packs_end_together_and_say_why(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    ends = launcher.run_ranks(3, *train_command(tmp_path / "run", "data.packs_per_step=2"))
    assert [end.code for end in ends] == [2, 2, 2]
    assert not (tmp_path / "run").exists()
    for end, rank in zip(ends, ("", " (rank 1)", " (rank 2)"), strict=True):
        assert names(end.stderr, f"error{rank}: data.packs_per_step", 2, 3, "data.packs_per_step=3")


def test_a_missing_shard_is_named(launcher: Launcher, train_command: TrainCommand, tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path, "digits-{000000..000001}.tar")
    write_shard(tmp_path / "digits-000000.tar", {f"{n:04d}": pair() for n in range(4)})
    end = launcher.run(*train_command(tmp_path / "run", f"data.mixture={mixture}"))
    assert names(only_error(end), "digits", tmp_path / "digits-000001.tar")
    assert end.code == 2
    assert not (tmp_path / "run").exists()


def test_a_cut_off_shard_is_named(launcher: Launcher, train_command: TrainCommand, tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path, "digits.tar")
    write_shard(tmp_path / "digits.tar", {f"{n:04d}": pair() for n in range(40)})
    whole = (tmp_path / "digits.tar").read_bytes()
    (tmp_path / "digits.tar").write_bytes(whole[: len(whole) // 2 - 100])
    end = launcher.run(*train_command(tmp_path / "run", f"data.mixture={mixture}"))
    assert end.code == 2
    assert names(only_error(end), "digits/digits.tar", "0022.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("bad", "overrides", "named"),
    [
        (lambda: {"json": document("a", "0.png", "b", "1.png"), "0.png": png()}, [], (2, "0, 1", 1, 0)),
        (lambda: {"txt": b"a digit", "png": png()[:60]}, [], ()),
        (lambda: {"txt": b"a digit", "png": png(9)}, [], ("[9, 9]", "[4, 4]", "patch")),
        (
            lambda: {"txt": b"a handwritten digit", "png": png()},
            ["data.max_sample_rows=6"],
            ("data.max_sample_rows", 6, "modality.*.per_pack", 48, 192, 'data.overlong = "drop"'),
        ),
    ],
    ids=["image that is not there", "broken image", "image of another size", "overlong"],
)
def test_a_bad_sample_is_named_and_nothing_is_left_behind(
    bad: Callable[[], dict[str, bytes]],
    overrides: list[str],
    named: tuple[object, ...],
    workers: int,
    launcher: Launcher,
    train_command: TrainCommand,
    tmp_path: Path,
) -> None:
    mixture = write_mixture(tmp_path, "digits.tar")
    write_shard(tmp_path / "digits.tar", {"0000": bad()})
    one_lane = ["data.packs_per_step=1", f"data.workers={workers}", f"data.mixture={mixture}"]
    end = launcher.run(*train_command(tmp_path / "run", *one_lane, *overrides))
    assert end.code == 2
    assert_holds_no_results(tmp_path / "run")
    assert names(only_error(end), "digits/digits/0000", *named)


def test_a_bad_sample_on_one_rank_ends_all_ranks(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    mixture = write_mixture(tmp_path, "digits.tar")
    samples = {f"{number:04d}": pair() for number in range(8)} | {"0005": {"txt": b"a digit", "png": b"no png"}}
    write_shard(tmp_path / "digits.tar", samples)
    # Each of the two lanes begins with four of the eight samples, of which one is broken.
    overrides = ["data.packs_per_step=2", "data.window_samples=4", f"data.mixture={mixture}"]
    ends = launcher.run_ranks(2, *train_command(tmp_path / "run", *overrides))
    named = [end for end in ends if re.search(r"error( \(rank 1\))?: .*digits/digits/0005", end.stderr)]
    assert len(named) == 1
    assert named[0].code == 2
    assert all(end.code != 0 for end in ends)
    assert_holds_no_results(tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.width=32", ("model.width", 48, 32)),
        ("modality.image.patch=[2, 2]", ("modality.image.patch", "(4, 4)", "(2, 2)")),
        ("run.seed=1", ("run.seed", 0, 1)),
        ("data.packs_per_step=2", ("data.packs_per_step", 4, 2)),
    ],
)
def test_a_checkpoint_of_another_architecture_or_another_cut_of_the_data_is_refused(
    override: str,
    named: tuple[object, ...],
    launcher: Launcher,
    train_command: TrainCommand,
    unbroken: Run,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    before = contents(folder)
    end = launcher.run(*train_command(folder, override))
    assert end.code == 2
    assert names(only_error(end), folder / "checkpoints/step-00000020", *named, "run.folder")
    assert contents(folder) == before


def test_a_write_that_fails_in_a_save_leaves_the_last_checkpoint_to_continue_from(
    launcher: Launcher, train_command: TrainCommand, unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    shutil.rmtree(folder / "checkpoints/step-00000020")
    before = contents(folder / "checkpoints/step-00000010")
    command = train_command(folder, "sampling.every_steps=0")
    end = launcher.run(*command, file_limit=200_000)
    assert end.code != 0
    assert contents(folder / "checkpoints/step-00000010") == before
    assert not (folder / "checkpoints/step-00000020").exists()

    with_room = launcher.run(*command)
    assert with_room.code == 0, with_room.stderr
    assert f"{folder}/checkpoints/step-00000010" in with_room.stdout
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(unbroken.folder))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]

    assert end.code == 2
    assert names(only_error(end), "rank 0")


@pytest.mark.parametrize("damage", ["missing", "cut off", "zeroed", "index"])
def test_a_damaged_checkpoint_is_named(
    damage: str, launcher: Launcher, train_command: TrainCommand, unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    part = folder / "checkpoints/step-00000020/__0_0.distcp"
    if damage == "missing":
        part.unlink()
    elif damage == "cut off":
        part.write_bytes(part.read_bytes()[:100_000])
    elif damage == "zeroed":  # as long as it was, as after a crash of some file systems
        part.write_bytes(bytes(part.stat().st_size))
    else:
        part.with_name(".metadata").write_bytes(b"")
    end = launcher.run(*train_command(folder))
    assert end.code == 2
    assert names(only_error(end), folder / "checkpoints/step-00000020")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB: room for one checkpoint of configs/debug.toml, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(
            f"to make a disk of 4 MiB needs root: {mount.stderr.strip()}. What a save does on a full disk is tested "
            "for everybody in tests/test_checkpoint.py, on one that is pretended"
        )
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_a_run_before_it_writes_half_a_checkpoint(
    launcher: Launcher, train_command: TrainCommand, small_disk: Path
) -> None:
    folder = small_disk / "run"
    command = train_command(folder, "train.steps=4", "checkpoint.every_steps=2", "sampling.every_steps=0")
    end = launcher.run(*command)
    assert end.code == 2
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002"]

    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    with_room = launcher.run(*command)
    assert with_room.code == 0, with_room.stderr
    assert f"{folder}/checkpoints/step-00000002" in with_room.stdout
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]

    assert names(only_error(end), folder / "checkpoints/step-00000004", "2 MiB", "1 MiB")


def test_losses_that_are_not_finite_end_a_run_and_leave_their_samples(
    launcher: Launcher, train_command: TrainCommand, unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    shutil.rmtree(folder / "checkpoints/step-00000020")
    before = contents(folder / "checkpoints/step-00000010")
    end = launcher.run(*train_command(folder, "optim.lr=1e30", "checkpoint.every_steps=1"))
    assert end.code == 1
    assert contents(folder / "checkpoints/step-00000010") == before
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert steps == ["step-00000010", "step-00000011"]  # the weights after step 11 are huge but finite
    assert_finite(folder / "checkpoints/step-00000011", tmp_path / "state.pt")
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, 12))

    kept = [key for path in folder.glob("bad-batch-step-00000012-*.pt") for key in load_bad_batch(path)["keys"]]
    error = only_error(end)
    assert any(names(error, 12, 0, key, len(kept)) for key in kept)  # of all the microbatches that it speaks of


def test_a_nan_on_one_rank_of_two_ends_both_and_names_the_rank(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    poison = tmp_path / "poison.py"
    poison.write_text(POISONED_RUN)
    ends = launcher.run_ranks(2, poison, *train_command(folder, "checkpoint.every_steps=1")[2:])
    assert [end.code for end in ends] == [1, 1]
    (path,) = folder.glob("bad-batch-*.pt")
    assert path.name == "bad-batch-step-00000003-rank-1-pack-1.pt"
    batch = load_bad_batch(path)
    assert torch.isnan(batch["pieces"][0]["patches"]).any()
    kept = sorted(folder.glob("checkpoints/*"))
    assert [path.name for path in kept] == ["step-00000001", "step-00000002"]
    assert_finite(kept[-1], tmp_path / "state.pt")

    error = only_error(ends[0])
    assert names(error, 3, 1, "zero", *batch["keys"][:8], len(batch["keys"]))
    assert error.removeprefix("error: ") in ends[1].stderr  # all ranks know


POISONED_RUN = """
import torch
import torch.distributed as dist

from oneflow_dist import train
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.runtime import run_program

make_packs = PackLoader.next_step
calls = []


def next_step(self):
    calls.append(None)
    packs = make_packs(self)
    if len(calls) == 3 and dist.get_rank() == 1:
        packs[-1].pieces[0].patches[0, 0] = float("nan")
    return packs


PackLoader.next_step = next_step
run_program(train.main)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_holds_no_results(folder: Path) -> None:
    """Neither checkpoints nor half-written files, and no line of a step that was not made."""
    assert {path.name for path in folder.rglob("*")} <= {"config.toml", "metrics.jsonl"}
    assert not (folder / "metrics.jsonl").exists() or read_metrics(folder) == []


def assert_finite(checkpoint: Path, scratch: Path) -> None:
    state = read_checkpoint(checkpoint, scratch)
    weights = [value for name, value in state.items() if name.startswith(("model.", "ema."))]
    assert len(weights) > 20
    assert all(torch.isfinite(weight).all() for weight in weights)


def load_bad_batch(path: Path) -> dict[str, Any]:
    """The fields of a packed batch."""
    table: dict[str, Any] = torch.load(path, weights_only=True)
    assert list(table) == [field.name for field in dataclasses.fields(PackedBatch)]
    Counts(**table["counts"])
    return table


def write_mixture(folder: Path, pattern: str) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(f"sources:\n  digits: {{shards: '{folder}/{pattern}', weight: 1, tasks: {{interleaved: 1}}}}\n")
    return path


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def png(side: int = 8) -> bytes:
    pixels = np.random.default_rng(side).integers(256, size=(side, side)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pair() -> dict[str, bytes]:
    return {"txt": b"a digit", "png": png()}


def document(*parts: str) -> bytes:
    """The JSON of a document; what ends in .png is an image."""
    segments = [
        {"type": "image", "image": part} if part.endswith(".png") else {"type": "text", "text": part} for part in parts
    ]
    return json.dumps({"segments": segments}).encode()
