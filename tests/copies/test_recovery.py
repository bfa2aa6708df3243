"""A copy that ranks on several nodes have made, what happens to the nodes, and what other ranks find."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from oneflow_dist.checkpoint import CheckpointWriter, load_checkpoint
from oneflow_dist.config import Config, load_config
from oneflow_dist.copies.place import ID_FILE, find_place
from oneflow_dist.copies.record import RECORD, Measure, Record
from oneflow_dist.copies.recovery import find_holders, recover, why_not
from oneflow_dist.metrics import open_alone
from oneflow_dist.progress import Progress, checkpoint_folder, find_latest, folder_beside
from tests.copies.making import be_on_node, config_in, copy_on_ranks, with_copies
from tests.copies.test_record import change_a_byte
from tests.launching import Launcher
from tests.messages import names, naming
from tests.processes import wait_until
from tests.test_checkpoint import PROGRESS, assert_same, tensors, trained

LANES = {rank: {"draws": [rank], "waiting": []} for rank in range(4)}
Found = tuple[str, Progress | None, dict[str, torch.Tensor]]


def recover_on_ranks(folder: str, ranks_per_node: int, overrides: list[str]) -> Found:
    """What ranks go on from: the name of the checkpoint, where it stands and its state."""
    be_on_node(ranks_per_node)
    config = load_config(f"{folder}/config.toml", overrides)
    latest = recover(config, find_latest(folder))
    parts = trained(config, seed=1)
    progress = load_checkpoint(latest, config, *parts) if latest is not None else None
    return (latest.name if latest is not None else "", progress, tensors(*parts))


def memory_of(config: Config, node: int) -> Path:
    """The folder of a node's copies."""
    (folder,) = Path(config.checkpoint.memory_folder).glob(f"oneflow-*-node{node}")
    return folder


@dataclass(frozen=True)
class Copied:
    """A run of which ranks, each on a node of its own, have made a copy of step 7; as it was then, for each test."""

    launcher: Launcher
    config: Config
    kept: Path
    expected: dict[str, torch.Tensor]

    def put_back(self) -> Copied:
        """As it was after the copy. Its folder is another run's if it is called otherwise."""
        world = Path(self.config.run.folder).parent
        shutil.rmtree(world)
        shutil.copytree(self.kept, world)
        return self

    def assert_recovered(self, num_ranks: int, ranks_per_node: int = 1, overrides: list[str] | None = None) -> None:
        """Bitwise, and now an ordinary checkpoint."""
        folder = self.config.run.folder
        for name, progress, state in self.launcher.call(
            num_ranks, recover_on_ranks, folder, ranks_per_node, overrides or []
        ):
            assert (name, progress) == ("step-00000007", Progress(step=7, lanes=LANES))
            assert_same(state, self.expected)
        assert find_latest(folder) == checkpoint_folder(folder, 7)

    def assert_lost(self) -> None:
        """There is nothing to go on from, and nothing has been begun on the disk."""
        folder = self.config.run.folder
        assert [found[0] for found in self.launcher.call(4, recover_on_ranks, folder, 1, [])] == [""] * 4
        assert not Path(folder, "checkpoints").exists()


def make_copied(num_ranks: int, launcher: Launcher, make_config: Callable[..., Config], scratch: Path) -> Copied:
    config = with_copies(make_config, scratch / "world")
    expected = launcher.call(num_ranks, copy_on_ranks, config_in(config), 1, [])[0][1]
    shutil.copytree(scratch / "world", scratch / "kept")
    return Copied(launcher, config, scratch / "kept", expected)


@pytest.fixture(scope="module")
def made_by_four(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Copied:
    return make_copied(4, launcher, make_config, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def made_by_one(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Copied:
    return make_copied(1, launcher, make_config, tmp_path_factory.mktemp("one"))


@pytest.fixture
def copied(made_by_four: Copied) -> Copied:
    return made_by_four.put_back()


@pytest.fixture
def copied_by_one(made_by_one: Copied, group_of_one: None, monkeypatch: pytest.MonkeyPatch) -> Config:
    """This process is on the node that has the copy."""
    monkeypatch.setenv("ONEFLOW_NODE", "node0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    return made_by_one.put_back().config


@pytest.mark.parametrize("lost", [0, 3])
def test_a_lost_node_costs_nothing(lost: int, copied: Copied) -> None:
    shutil.rmtree(memory_of(copied.config, lost))
    copied.assert_recovered(4)


def test_fewer_ranks_on_fewer_nodes_go_on_from_what_these_have(copied: Copied) -> None:
    for node in (1, 3):
        shutil.rmtree(memory_of(copied.config, node))
    third = memory_of(copied.config, 2)
    third.rename(third.with_name(third.name.replace("node2", "node1")))
    copied.assert_recovered(4, ranks_per_node=2, overrides=["parallel.replicate=2", "parallel.shard=2"])


def test_two_neighbours_that_are_lost_take_a_copy_with_them(copied: Copied) -> None:
    for node in (1, 2):
        shutil.rmtree(memory_of(copied.config, node))
    copied.assert_lost()


def test_of_a_file_with_a_damaged_byte_the_neighbours_is_taken(copied: Copied) -> None:
    change_a_byte(memory_of(copied.config, 2) / "step-00000007/__2_0.distcp")
    copied.assert_recovered(4)


def test_a_byte_that_is_damaged_on_both_nodes_is_noticed(copied: Copied) -> None:
    for node in (2, 3):
        change_a_byte(memory_of(copied.config, node) / "step-00000007/__2_0.distcp")
    copied.assert_lost()


def test_a_copy_that_was_being_renamed_when_a_node_died_is_not_whole(copied: Copied) -> None:
    for node in (1, 2):
        whole = memory_of(copied.config, node) / "step-00000007"
        whole.rename(folder_beside(whole))
    copied.assert_lost()


def test_files_of_two_copies_of_one_step_are_not_mixed(copied: Copied) -> None:
    for node in (0, 1):
        path = memory_of(copied.config, node) / "step-00000007" / RECORD
        path.write_text(
            path.read_text().replace('"save": "', '"save": "0')
        )  # those of the ranks 3, 0 and 1; of 1, 2, 3
    copied.assert_lost()


def test_a_copy_of_a_run_that_was_deleted_is_not_taken(copied_by_one: Config) -> None:
    (Path(copied_by_one.run.folder) / ID_FILE).unlink()
    assert recover(copied_by_one, None) is None


def test_the_node_and_the_step_are_told(copied_by_one: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert recover(copied_by_one, None) == checkpoint_folder(copied_by_one.run.folder, 7)
    assert names(capsys.readouterr().out, 7, "node0", "GiB")


def test_where_no_copies_are_made_none_is_looked_for(copied_by_one: Config) -> None:
    config = replace(copied_by_one, checkpoint=replace(copied_by_one.checkpoint, memory_every_steps=0))
    assert recover(config, None) is None


@pytest.mark.parametrize("step", [7, 8])
def test_a_checkpoint_that_is_not_older_is_taken_from_the_disk(
    step: int, copied_by_one: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    CheckpointWriter(copied_by_one, *trained(copied_by_one)).save(replace(PROGRESS, step=step))
    latest = find_latest(copied_by_one.run.folder)
    assert recover(copied_by_one, latest) == latest == checkpoint_folder(copied_by_one.run.folder, step)
    assert names(capsys.readouterr().out, 7, step)


def test_the_older_checkpoints_are_deleted_as_after_a_save(copied_by_one: Config) -> None:
    config = replace(copied_by_one, checkpoint=replace(copied_by_one.checkpoint, keep=1))
    CheckpointWriter(config, *trained(config)).save(replace(PROGRESS, step=5))
    recover(config, find_latest(config.run.folder))
    assert [path.name for path in Path(config.run.folder, "checkpoints").iterdir()] == ["step-00000007"]


def test_copies_that_are_lost_are_told_of(copied_by_one: Config, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(find_place(copied_by_one).folder)
    assert recover(copied_by_one, None) is None
    assert names(capsys.readouterr().out, copied_by_one.checkpoint.memory_folder, "node0")


def hold(folder: str, name: str) -> None:
    """Stay in the folder, as a living run, until the file is there."""
    file = open_alone(Path(folder) / "metrics.jsonl")
    Path(folder, "held").touch()
    while not Path(folder, name).exists():
        time.sleep(0.01)
    file.close()


def test_nothing_is_taken_from_a_run_that_lives(copied_by_one: Config, launcher: Launcher) -> None:
    run = Path(copied_by_one.run.folder)
    living = threading.Thread(target=launcher.call, args=(1, hold, str(run), "over"))
    living.start()
    wait_until((run / "held").exists, "a living run")
    with pytest.raises(ValueError, match=naming(run)):
        recover(copied_by_one, None)
    (run / "over").touch()
    living.join()
    assert not (run / "checkpoints").exists()


def record(step: int, after: int, *names: str) -> Record:
    return Record(step=step, save="a", after=after, files=dict.fromkeys(names, Measure(1, 1)))


@pytest.mark.parametrize(
    ("made", "newest", "named"),
    [
        (record(7, 0, "a", "b"), 0, ()),
        (record(7, 5, "a", "b"), 5, ()),
        (record(7, 0, "a", "b"), 6, ()),  # saved since, on other nodes
        (record(7, 0, "a", "b"), 7, (7,)),
        (record(7, 5, "a", "b"), 4, (5,)),  # somebody has moved step 5 away
        (record(7, 5, "a", "b"), 0, (5,)),
        (record(7, 0, "a", "b", "c", "d"), 0, (2, 4, "c")),
    ],
)
def test_a_copy_is_taken_if_it_is_whole_and_comes_after_what_is_on_the_disk(
    made: Record, newest: int, named: tuple[object, ...]
) -> None:
    reason = why_not(made, {"a": 0, "b": 3}, newest)
    assert names(reason, *named) if named else reason == ""


def test_the_first_rank_that_has_a_file_puts_it_on_the_disk() -> None:
    by_rank: list[dict[str, list[str]]] = [{"copy": ["a"]}, {}, {"copy": ["a", "b"], "older": ["a"]}]
    assert find_holders(by_rank) == {"copy": {"a": 0, "b": 2}, "older": {"a": 2}}
