from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.api import CheckpointException

from oneflow_dist.checkpoint import load_checkpoint
from oneflow_dist.config import Config
from oneflow_dist.copies import writer
from oneflow_dist.copies.place import ID_FILE, Place
from oneflow_dist.copies.record import RECORD, find_records, read_record
from oneflow_dist.copies.recovery import recover
from oneflow_dist.copies.writer import CopyWriter
from oneflow_dist.progress import folder_beside
from oneflow_dist.runtime import GLOO
from tests.copies.making import config_in, copy_on_ranks
from tests.launching import Launcher
from tests.messages import names, naming
from tests.test_checkpoint import PROGRESS, assert_same, tensors, trained


@pytest.mark.usefixtures("group_of_one")
def test_a_copy_is_the_state_at_the_call_whatever_is_trained_meanwhile(run_config: Config) -> None:
    model, optimizer, ema = parts = trained(run_config)
    expected, copies = tensors(*parts), CopyWriter(run_config, *parts)
    copies.save(PROGRESS)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-3, torch.ones(()), torch.zeros(()))
    ema.update(model, 3)
    copies.wait()
    for name, tensor in tensors(*parts).items():
        assert not torch.equal(tensor, expected[name]), name
    folder, other = recover(run_config, None), trained(run_config, seed=1)
    assert folder is not None
    assert load_checkpoint(folder, run_config, *other) == PROGRESS
    assert_same(tensors(*other), expected)


@pytest.mark.usefixtures("group_of_one")
def test_the_newest_copy_is_kept_alone(run_config: Config) -> None:
    copies = CopyWriter(run_config, *trained(run_config))
    copies.save(replace(PROGRESS, step=5))
    copies.wait()
    folder_beside(copies.place.copy_of(3)).mkdir()  # left over from a start that was killed
    copies.save(replace(PROGRESS, step=10))
    copies.wait()
    assert [path.name for path in copies.place.folder.iterdir()] == ["step-00000010"]
    assert copies.place.folder.stat().st_mode & 0o777 == 0o700  # others may not read the weights


@pytest.mark.usefixtures("group_of_one")
def test_a_run_that_is_well_leaves_no_copy_and_one_that_fails_leaves_its_last(run_config: Config) -> None:
    memory, parts = Path(run_config.checkpoint.memory_folder), trained(run_config)

    def fail() -> None:
        with CopyWriter(run_config, *parts) as copies:
            copies.save(PROGRESS)
            copies.wait()
            raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError):
        fail()
    assert len(list(memory.glob(f"*/step-00000007/{RECORD}"))) == 1
    with CopyWriter(run_config, *parts) as copies:
        copies.save(replace(PROGRESS, step=14))
    assert list(memory.iterdir()) == []
    assert not Path(run_config.run.folder, ID_FILE).exists()


@pytest.mark.usefixtures("group_of_one")
def test_copies_are_due_every_so_many_steps_but_not_at_the_end(run_config: Config) -> None:
    config, parts = replace(run_config, train=replace(run_config.train, steps=20)), trained(run_config)
    assert [step for step in range(1, 21) if CopyWriter(config, *parts).is_due(step)] == [5, 10, 15]
    never = replace(config, checkpoint=replace(config.checkpoint, memory_every_steps=0))
    with CopyWriter(never, *parts) as copies:
        assert not any(copies.is_due(step) for step in range(1, 21))


@pytest.mark.usefixtures("group_of_one")
def test_without_room_for_two_copies_a_run_does_not_start(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = trained(run_config)
    monkeypatch.setattr(writer, "room_in", lambda folder: 2**20)
    named = ("checkpoint.memory_folder", run_config.checkpoint.memory_folder, "--shm-size")
    with pytest.raises(ValueError, match=naming(*named, "checkpoint.memory_every_steps")):
        CopyWriter(run_config, *parts)


@pytest.mark.usefixtures("group_of_one")
def test_where_room_is_gone_later_the_copy_is_left_out_with_a_line(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = CopyWriter(run_config, *trained(run_config))
    copies.save(replace(PROGRESS, step=5))
    copies.wait()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "room_in", lambda folder: 2**20)
        copies.save(replace(PROGRESS, step=10))
        copies.wait()
    assert names(capsys.readouterr().out, 10, run_config.checkpoint.memory_folder, "MiB")
    assert [path.name for path in copies.place.folder.iterdir()] == ["step-00000005"]
    copies.save(replace(PROGRESS, step=15))
    copies.wait()
    assert [path.name for path in copies.place.folder.iterdir()] == ["step-00000015"]


@pytest.mark.usefixtures("group_of_one")
def test_a_copy_that_fails_is_raised_by_the_next_and_the_one_before_is_kept(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("memory is full")

    copies = CopyWriter(run_config, *trained(run_config))
    copies.save(replace(PROGRESS, step=5))
    copies.wait()
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "_write_item", fail)
        copies.save(replace(PROGRESS, step=10))
        with pytest.raises(CheckpointException, match="memory is full"):
            copies.save(replace(PROGRESS, step=15))
    (text,) = find_records(copies.place.folder)
    assert read_record(text).step == 5


@pytest.mark.parametrize(
    ("ranks_per_node", "of_nodes"), [(4, ["0123"]), (2, ["0123", "0123"]), (1, ["03", "01", "12", "23"])]
)
def test_files_of_each_node_lie_on_the_next_one_too(
    ranks_per_node: int, of_nodes: list[str], launcher: Launcher, run_config: Config
) -> None:
    found = [files for files, _ in launcher.call(4, copy_on_ranks, config_in(run_config), ranks_per_node, [])]
    small = [".metadata", "config.toml", "progress.json", "tokenizer.tiktoken"]
    for node, ranks in enumerate(of_nodes):
        expected = sorted([*(f"__{rank}_0.distcp" for rank in ranks), *small])
        assert found[node * ranks_per_node] == expected


def exchange_on_ranks(folder: str, sizes: list[int], chunk: int) -> bool:
    """Whether the file of the rank before has come as it is."""
    writer.CHUNK = chunk
    rank, world = dist.get_rank(), dist.get_world_size()
    own = Path(folder) / str(rank)
    own.mkdir()
    place = Place(rank=rank, nodes=tuple(f"node{rank}" for rank in range(world)), folder=own, had_copies=False)
    content = [random.Random(of).randbytes(size) for of, size in enumerate(sizes)]
    if content[rank]:
        (own / writer.part_of(rank)).write_bytes(content[rank])
    writer.exchange(own, place, dist.new_group(backend=GLOO))
    there = {path.name: path.read_bytes() for path in own.iterdir()}
    return there == {writer.part_of(of): content[of] for of in (rank, place.source) if content[of]}


@pytest.mark.parametrize("sizes", [[0, 1, 32, 33], [100, 0, 0, 7], [64, 64, 64, 64], [0, 0, 0, 0]])
def test_files_of_any_lengths_are_exchanged(sizes: list[int], launcher: Launcher, tmp_path: Path) -> None:
    assert all(launcher.call(4, exchange_on_ranks, str(tmp_path), sizes, 32))
