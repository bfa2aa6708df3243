"""oneflow inspect: the digest of a step is the same for every layout of ranks and workers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from oneflow_dist.config import Config, write_config
from tests.launching import Finished, Launcher, Run, oneflow, only_error
from tests.messages import names

Inspect = Callable[..., Finished]


@pytest.fixture(scope="module")
def inspect(
    launcher: Launcher, digits: Path, make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Inspect:
    """The tool on a mixture of three sources, in packs that hold several samples."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "mixture.yaml").write_text(
        "sources:\n"
        f"  single: {{shards: '{digits}/single-train-*.tar', weight: 2, tasks: {{text_to_image: 1, both: 1}}}}\n"
        f"  reading: {{shards: '{digits}/single-train-000000.tar', weight: 1, tasks: {{image_to_text: 1}}}}\n"
        f"  count: {{shards: '{digits}/count-train-*.tar', weight: 1, tasks: {{interleaved: 1}}, prompt: 'count'}}\n"
    )
    small = ("rows_per_pack=192", "tokens_per_pack=128", "bag_tokens_per_pack=128")
    config = make_config(
        *(f"data.{pair}" for pair in small),
        *(
            "modality.image.per_pack=32",
            "data.packs_per_step=24",
            "data.window_samples=24",
            f"data.mixture={folder}/mixture.yaml",
        ),
    )
    (folder / "config.toml").write_text(write_config(config))

    def run(*arguments: str | Path) -> Finished:
        return launcher.run(*oneflow("inspect"), folder / "config.toml", *arguments)

    return run


@pytest.fixture(scope="module")
def one_process(inspect: Inspect) -> list[str]:
    """The lines of steps 0 to 19 from one rank without workers."""
    end = inspect("--steps", "0:19", "--workers", "0")
    assert end.code == 0, end.stderr
    return end.stdout.splitlines()


def test_a_line_has_step_digest_padding_and_keys(one_process: list[str]) -> None:
    assert [line.split()[0] for line in one_process] == [str(step) for step in range(19)]
    digests = [line.split()[1] for line in one_process]
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    assert len(set(digests)) == 19
    assert all(" padding " in line and " samples " in line and " more" in line for line in one_process)
    assert {key.split("/")[0] for key in one_process[0].split()[6:9]} <= {"single", "reading", "count"}


def test_the_end_says_how_full_the_packs_of_all_steps_are(
    make_config: Callable[..., Config], launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(write_config(make_config("data.packs_per_step=2")))
    end = launcher.run(*oneflow("inspect"), tmp_path / "config.toml", "--steps", "1:4")
    found = re.search(r"6 packs of 2048 rows: padding ([\d.]+)%.* samples a pack.* rows/s", end.stderr)
    assert found is not None, end.stderr
    assert float(found[1]) < 3.0
    assert "attention pairs" not in end.stderr  # one rank has all of them


def test_the_end_says_how_equal_the_attention_of_ranks_is(inspect: Inspect) -> None:
    end = inspect("--steps", "0:2", "--world-size", "8", "--workers", "0", "data.packing=balanced")
    found = re.search(r"attention pairs of a rank: ([\d.]+)% .*'balanced'", end.stderr)
    assert found is not None, end.stderr
    assert 50.0 < float(found[1]) <= 100.0


@pytest.mark.parametrize(("world_size", "workers"), [(1, 3), (2, 1), (4, 0), (8, 3)])
def test_digests_depend_neither_on_ranks_nor_on_workers_nor_on_the_first_step(
    world_size: int, workers: int, inspect: Inspect, one_process: list[str]
) -> None:
    end = inspect("--steps", "17:19", "--world-size", str(world_size), "--workers", str(workers))
    assert end.code == 0, end.stderr
    assert end.stdout.splitlines() == one_process[17:]


def test_digests_from_a_checkpoint_are_those_of_the_run_that_wrote_it(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    arguments = train_command(tmp_path)[2:]  # debug.toml and where its data lies
    checkpoint = unbroken.folder / "checkpoints" / "step-00000010"
    whole = launcher.run(*oneflow("inspect"), *arguments, "--steps", "10:12")
    resumed = launcher.run(*oneflow("inspect"), *arguments, "--steps", "10:12", "--checkpoint", checkpoint)
    assert resumed.stdout == whole.stdout != ""
    late = launcher.run(*oneflow("inspect"), *arguments, "--steps", "9:12", "--checkpoint", checkpoint)
    assert names(only_error(late), checkpoint, 10, "--steps 9", 10)


def test_other_data_has_another_digest(inspect: Inspect, one_process: list[str]) -> None:
    for change in ("run.seed=1", "flow.condition_dropout_prob=0.5"):
        assert inspect(change, "--steps", "0:1").stdout.split()[1] != one_process[0].split()[1]


def test_a_pack_is_drawn_and_all_keys_are_printed(inspect: Inspect, tmp_path: Path) -> None:
    end = inspect("--steps", "1:2", "--keys", "--show", tmp_path / "pack.png")
    line, *spelled, drawn = end.stdout.splitlines()
    keys = line.split()[6:]
    assert len(keys) == int(line.split()[5])
    assert [each.partition(": ")[0] for each in spelled] == keys[: len(spelled)]
    assert all("{" in each or "[" in each for each in spelled)  # nothing is without a target
    assert drawn == f"drew the first pack of step 1: {tmp_path}/pack.png"
    with Image.open(tmp_path / "pack.png") as picture:
        assert 600 < picture.width <= 1248
        colors = {color for _, color in picture.getcolors(1 << 24)}
    assert (0xC0, 0x39, 0x2B) in colors  # what is missing


def test_checkpoints_of_another_version_and_bad_steps_are_refused(
    inspect: Inspect, unbroken: Run, tmp_path: Path
) -> None:
    assert only_error(inspect("--steps", "5:5")) == "error: --steps: '5:5' is not A:B with A below B, as 0:10"
    assert names(only_error(inspect("--world-size", "0")), "--world-size", 0, "[1, inf)")
    assert only_error(inspect("--checkpoint", tmp_path)).startswith(f"error: {tmp_path}: no complete checkpoint ")
    old = tmp_path / "step-00000010"
    shutil.copytree(unbroken.folder / "checkpoints" / "step-00000010", old)
    (old / "progress.json").write_text('{"step": 10, "lanes": {}}')
    assert only_error(inspect("--steps", "10:12", "--checkpoint", old)) == (
        f"error: {old}: written by another version (format None, this one reads 4); start a new run in another "
        "run.folder"
    )
