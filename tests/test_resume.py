from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.launching import (
    ENVIRONMENT,
    ROOT,
    TORCHRUN,
    Launcher,
    Run,
    assert_same_pictures,
    assert_same_steps,
    only_error,
    read_checkpoint,
    read_metrics,
    wait_for_step,
    without_timings,
)
from tests.messages import names


def test_a_killed_run_ends_bitwise_as_the_unbroken_one(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    command = train_command(tmp_path / "run", "data.workers=2")  # workers change nothing, and die with the run
    job = launcher.start(*command)
    wait_for_step(tmp_path / "run", 12)
    job.kill()
    assert job.wait()[0].code == -signal.SIGKILL
    assert_killed_between_checkpoints(tmp_path / "run")

    end = launcher.run(*command)
    assert end.code == 0, end.stderr
    assert f"{tmp_path}/run/checkpoints/step-00000010" in end.stdout
    assert_bitwise_equal(tmp_path / "run", unbroken.folder, tmp_path)
    own, theirs = (folder / "samples/step-00000020.png" for folder in (tmp_path / "run", unbroken.folder))
    assert own.read_bytes() == theirs.read_bytes()


def test_two_killed_ranks_of_torchrun_end_bitwise_as_two_unbroken_ones(
    launcher: Launcher, train_command: Callable[..., list[str]], torchrun_of_two: Run, tmp_path: Path
) -> None:
    command = train_command(tmp_path / "run", "sampling.every_steps=0")
    with (tmp_path / "output").open("w") as output:
        torchrun = [sys.executable, *TORCHRUN, "--nproc-per-node", "2", *command]
        job = subprocess.Popen(torchrun, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
        wait_for_step(tmp_path / "run", 12)
        kill_tree(job.pid)
        assert job.wait() == -signal.SIGKILL
    assert_killed_between_checkpoints(tmp_path / "run")

    ends = launcher.run_ranks(2, *command)
    assert [end.code for end in ends] == [0, 0]
    assert f"{tmp_path}/run/checkpoints/step-00000010" in ends[0].stdout
    assert ends[1].stdout == ""  # rank 0 speaks for all
    assert_bitwise_equal(tmp_path / "run", torchrun_of_two.folder, tmp_path)


# Ranks, and what [parallel] says of them.
LAYOUTS = {
    "1": (1, ()),
    "shard 2": (2, ()),
    "shard 3": (3, ()),  # of which one has two packs of four, and two have a silent one
    "shard 4": (4, ()),
    "replicate 3": (3, ("parallel.replicate=3",)),
    "replicate 2 x shard 2": (4, ("parallel.replicate=2", "parallel.shard=2")),
    "tensor 2": (2, ("parallel.shard=1", "parallel.tensor=2")),
    "shard 2 x tensor 2": (4, ("parallel.shard=2", "parallel.tensor=2")),
    "shard 2 x context 2": (4, ("parallel.shard=2", "parallel.context=2")),
}
# Each writes the checkpoint from which the next goes on: every kind of axis comes, goes and gives way to every other.
CHAINS = {
    "shards and replicas": (
        "shard 2, replicate 2 x shard 2, 1, shard 2, shard 4, 1, shard 2 x tensor 2, replicate 2 x shard 2, shard 2"
    ),
    "few and many": (
        "1, replicate 2 x shard 2, shard 4, shard 2 x context 2, tensor 2, shard 2 x tensor 2, "
        "shard 2 x context 2, tensor 2"
    ),
    "fewer ranks than before, for a while": "shard 2, shard 4, shard 3, replicate 3, shard 4",
    "tensor ranks and others": "1, shard 2 x tensor 2, shard 2, shard 2 x tensor 2, 1",
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_continues_on_one_layout_after_another(
    chain: str,
    launcher: Launcher,
    train_command: Callable[..., list[str]],
    unbroken: Run,
    torchrun_of_two: Run,
    tmp_path: Path,
) -> None:
    """A step on each, on the last to the end. Weights show in the loss of the next step, moments in the one after."""
    folder = tmp_path / "run"
    first, *others = CHAINS[chain].split(", ")
    stop_at_step_10({"1": unbroken, "shard 2": torchrun_of_two}[first].folder, folder)
    steps = [*range(11, 10 + len(others)), 20]
    for before, step, layout in zip([10, *steps], steps, others, strict=False):
        num_ranks, parallel = LAYOUTS[layout]
        ends = launcher.run_ranks(num_ranks, *train_command(folder, f"train.steps={step}", *parallel))
        assert [end.code for end in ends] == [0] * num_ranks, f"{layout}:\n{ends[0].stderr}"
        assert f"{step}/{step}" in ends[0].stderr  # the progress bar
        assert "Warning" not in "".join(end.stderr for end in ends)
        assert f"{folder}/checkpoints/step-{before:08d}" in ends[0].stdout
    assert_same_steps(folder, unbroken.folder)
    assert_same_pictures(folder, unbroken.folder)
    assert (folder / "checkpoints/step-00000020/COMPLETE").exists()


PART = [
    *(
        "model.prompt_sees=prompt",
        "data.block_rows=16",
        "sampling.every_steps=0",
        "optim.matrices=muon",
        "model.qk_norm=true",
        "lora.rank=4",
        "lora.dropout=0.2",
    ),
    *('lora.products=["attention.qkv", "mlp.down"]', 'optim.group=[{names=["embed*", "heads.*"], frozen=true}]'),
]


def test_a_run_that_trains_a_part_goes_on_bitwise_after_a_kill(
    launcher: Launcher, train_command: Callable[..., list[str]], digits: Path, tmp_path: Path
) -> None:
    """Low-rank products with dropout, Muon, frozen weights; holes and blocks, of prompts that see themselves alone."""
    whole, killed, mixture = tmp_path / "whole", tmp_path / "killed", tmp_path / "mixture.yaml"
    text = (digits / "mixture.yaml").read_text()
    assert "interleaved: 1" in text
    mixture.write_text(text.replace("interleaved: 1", "interleaved: 1, infill: 1, blocks: 1"))
    part = [*PART, f"data.mixture={mixture}"]
    assert launcher.run(*train_command(whole, *part)).code == 0
    job = launcher.start(*train_command(killed, *part))
    wait_for_step(killed, 12)
    job.kill()
    job.wait()
    assert launcher.run(*train_command(killed, *part)).code == 0
    assert without_timings(read_metrics(killed)) == without_timings(read_metrics(whole))
    last = "checkpoints/step-00000020"
    state, expected = (read_checkpoint(path / last, tmp_path / f"{path.name}.pt") for path in (killed, whole))
    assert any(key.startswith("optimizer.mean.") for key in state)
    assert not {"ema.embed.weight", "optimizer.first.embed.weight"} & state.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value) if isinstance(value, torch.Tensor) else state[key] == value, key


def test_a_run_killed_twice_and_continued_on_other_numbers_of_ranks_sees_the_same_samples(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = train_command(folder, "sampling.every_steps=0", "checkpoint.every_steps=5", "data.workers=1")
    for num_ranks, step in ((2, 7), (4, 13)):
        job = launcher.start(*command, num_ranks=num_ranks)
        wait_for_step(folder, step)
        job.kill()
        assert [end.code for end in job.wait()] == [-signal.SIGKILL] * num_ranks
    end = launcher.run(*command)
    assert end.code == 0, end.stderr
    assert_same_steps(folder, unbroken.folder)
    mine, theirs = (run / "checkpoints/step-00000020/progress.json" for run in (folder, unbroken.folder))
    own, other = (json.loads(path.read_text()) for path in (mine, theirs))
    assert own.pop("guard") == pytest.approx(other.pop("guard"), rel=1e-4)  # a mean of norms that ranks have summed
    assert own == other  # the same draws, the same samples waiting


def test_a_second_run_in_the_folder_of_a_living_one_is_refused(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = train_command(tmp_path / "run", "sampling.every_steps=0", "train.steps=100000", "data.workers=1")
    first = launcher.start(*command)
    wait_for_step(tmp_path / "run", 1)
    assert names(only_error(launcher.run(*command)), tmp_path / "run")
    first.kill()
    first.wait()
    steps = (tmp_path / "run/metrics.jsonl").read_text().count("\n")
    again = launcher.start(*command)  # at once, though data workers of the killed run may live a little longer
    wait_for_step(tmp_path / "run", steps + 1)
    again.kill()
    again.wait()


def test_what_a_save_that_was_broken_off_has_left_is_ignored(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stop_at_step_10(unbroken.folder, folder)
    beside = folder / "checkpoints/step-00000020.incomplete"
    beside.mkdir()
    (beside / "__0_0.distcp").write_bytes(b"half a file")
    end = launcher.run(*train_command(folder, "sampling.every_steps=0"))
    assert end.code == 0, end.stderr
    assert f"{folder}/checkpoints/step-00000010" in end.stdout
    assert_bitwise_equal(folder, unbroken.folder, tmp_path)
    assert not beside.exists()  # step 20 took its place


def lose_the_mark(run: Path) -> None:
    (run / "checkpoints/step-00000010/COMPLETE").unlink()


def lose_the_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def empty_the_progress(run: Path) -> None:
    (run / "checkpoints/step-00000010/progress.json").write_text("")


def lose_the_config(run: Path) -> None:
    (run / "checkpoints/step-00000010/config.toml").unlink()


def cut_the_tensors(run: Path) -> None:
    os.truncate(run / "checkpoints/step-00000010/__0_0.distcp", 100)


def damage_the_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2,', "garbage", 1))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lose_the_mark, ("step-00000010", "COMPLETE")),
        (lose_the_checkpoints, ("step-00000020", "checkpoints/")),
        (empty_the_progress, ("step-00000010/progress.json",)),
        (lose_the_config, ("step-00000010", "config.toml")),
        (cut_the_tensors, ("step-00000010", "__0_0.distcp")),
        (damage_the_metrics, ("metrics.jsonl", 2)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_something_of_a_run_cannot_be_used_nothing_is_begun_or_overwritten(
    harm: Callable[[Path], None],
    named: tuple[object, ...],
    launcher: Launcher,
    train_command: Callable[..., list[str]],
    unbroken: Run,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    stop_at_step_10(unbroken.folder, folder)
    harm(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    end = launcher.run(*train_command(folder, "sampling.every_steps=0"))
    assert end.code == 2
    assert names(only_error(end), *named)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_a_run_has_made_are_refused(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    end = launcher.run(*train_command(folder, "train.steps=19"))
    assert end.code == 2
    assert names(only_error(end), "train.steps", 19, folder / "checkpoints/step-00000020", 20)
    assert (folder / "config.toml").read_bytes() == (unbroken.folder / "config.toml").read_bytes()


def test_what_changes_the_course_of_a_run_is_told(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stop_at_step_10(unbroken.folder, folder)
    end = launcher.run(*train_command(folder, "sampling.every_steps=0", "optim.lr=1e-3", "train.steps=11"))
    assert end.code == 0, end.stderr
    assert names(end.stdout.replace("\n", " "), "optim.lr", 0.001, 0.002, "train.steps", 11, 20)
    assert "sampling.every_steps" not in end.stdout


def test_a_checkpoint_that_was_moved_and_linked_does_not_stop_saving(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    (folder / "checkpoints/step-00000010").rename(tmp_path / "elsewhere")
    (folder / "checkpoints/step-00000010").symlink_to(tmp_path / "elsewhere")
    more = ["train.steps=23", "checkpoint.every_steps=1", "checkpoint.keep=1", "sampling.every_steps=0"]
    end = launcher.run(*train_command(folder, *more))
    assert end.code == 0, end.stderr
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000023"]
    assert (tmp_path / "elsewhere/COMPLETE").exists()


def test_the_same_command_after_the_end_changes_nothing(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files[folder / "config.toml"]  # names the folder that was copied
    end = launcher.run(*train_command(folder))
    assert end.code == 0, end.stderr
    assert {path: path.read_bytes() for path in files} == files
    assert {path for path in folder.rglob("*") if path.is_file()} == {*files, folder / "config.toml"}


def test_more_steps_continue_a_run_that_has_ended(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    end = launcher.run(*train_command(folder, "train.steps=22", "sampling.every_steps=0"))
    assert end.code == 0, end.stderr
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, 23))
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000022"]  # checkpoint.keep = 2; the last step is always saved


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all its descendants; torchrun's workers are in sessions of their own."""
    tree = [pid]
    for parent in tree:
        with suppress(FileNotFoundError):
            tree += [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    for each in tree:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def stop_at_step_10(unbroken: Path, folder: Path) -> None:
    """A copy of a run as it was after its first checkpoint."""
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints/step-00000020")
    shutil.rmtree(folder / "samples")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:13]) + lines[13][:40])  # killed while it wrote the 14th


def assert_killed_between_checkpoints(folder: Path) -> None:
    assert (folder / "checkpoints/step-00000010/COMPLETE").exists()
    assert not (folder / "checkpoints/step-00000020").exists()
    assert 12 <= (folder / "metrics.jsonl").read_text().count("\n") < 20


def assert_bitwise_equal(folder: Path, expected: Path, scratch: Path) -> None:
    """Metrics but for timings, all tensors of the last checkpoint, and the place in the data."""
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(expected))
    last = "checkpoints/step-00000020"
    own, theirs = ((path / last / "progress.json").read_text() for path in (folder, expected))
    assert json.loads(own) == json.loads(theirs)
    state = read_checkpoint(folder / last, scratch / "own.pt")
    expected_state = read_checkpoint(expected / last, scratch / "expected.pt")
    assert state.keys() == expected_state.keys()
    assert sum(key.startswith("model.") for key in state) == sum(key.startswith("ema.") for key in state) > 10
    assert sum(key.startswith("optimizer.second.") for key in state) == sum(key.startswith("model.") for key in state)
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected_state[key]), key
        else:
            assert value == expected_state[key], key
