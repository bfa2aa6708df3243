from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from oneflow_dist import checkpoint
from oneflow_dist.checkpoint import CheckpointWriter, list_changes, load_checkpoint
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.parallel.sharding import shard_model
from oneflow_dist.progress import Progress, checkpoint_folder, find_latest, read_progress
from oneflow_dist.stored_tensors import named_leaves
from tests.launching import TIMEOUT, Launcher
from tests.messages import names, naming
from tests.modalities import overrides

Trained = tuple[OneFlow, AdamW, MovingAverage]


def untrained(config: Config, seed: int = 0) -> Trained:
    """A model on this process's ranks, its optimizer and its average."""
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    with torch.device("meta"):
        model = OneFlow(config)
    shard_model(model, mesh, config)
    model.to_empty(device="cpu")
    initialize(model, seed, config.model.num_layers)
    return model, AdamW(model, config.optim), MovingAverage(model, 0.5)


def trained(config: Config, seed: int = 0) -> Trained:
    """The same after two steps on made-up gradients."""
    model, optimizer, ema = untrained(config, seed)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = 0.1 * step + parameter.detach()
        optimizer.step(1e-3, torch.ones(()), torch.zeros(()))
        ema.update(model, step)
    optimizer.zero_grad()
    return model, optimizer, ema


def tensors(model: nn.Module, optimizer: AdamW, ema: MovingAverage) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint must bring back, as whole tensors."""
    found: dict[str, torch.Tensor] = dict(named_leaves(optimizer.tensors))
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach()
        found[f"ema {name}"] = ema.tensors[name]
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in found.items()}


def assert_same(own: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert own.keys() == expected.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, expected[name]), name


PROGRESS = Progress(
    step=7,
    lanes={0: {"draws": [3], "waiting": [[0, 2]]}, 11: {"draws": [5], "waiting": []}},
    guard=GuardState(norm_mean=0.1 + 0.2, accepted=6, skipped=1),
)


@pytest.fixture
def run_config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    return make_config(f"run.folder={tmp_path / 'run'}", "checkpoint.keep=2")


@pytest.mark.usefixtures("group_of_one")
def test_what_was_saved_is_loaded_bitwise(run_config: Config) -> None:
    saved = trained(run_config)
    expected = tensors(*saved)
    CheckpointWriter(run_config, *saved).save(PROGRESS)
    other = trained(run_config, seed=1)
    assert not torch.equal(tensors(*other)["embed.weight"], expected["embed.weight"])
    folder = find_latest(run_config.run.folder)
    assert folder == checkpoint_folder(run_config.run.folder, 7)
    assert load_checkpoint(folder, run_config, *other) == PROGRESS
    assert_same(tensors(*other), expected)
    assert load_config(folder / "config.toml") == run_config


def save_on_ranks(folder: str, overrides: list[str]) -> dict[str, torch.Tensor]:
    config = load_config(f"{folder}/config.toml", overrides)
    parts = trained(config)
    rank = dist.get_rank()
    CheckpointWriter(config, *parts).save(Progress(step=7, lanes={rank: {"draws": [rank], "waiting": []}}))
    return tensors(*parts)


def load_on_ranks(folder: str, overrides: list[str]) -> tuple[Progress, dict[str, torch.Tensor]]:
    config = load_config(f"{folder}/config.toml", overrides)
    parts = trained(config, seed=1)
    progress = load_checkpoint(checkpoint_folder(folder, 7), config, *parts)
    return progress, tensors(*parts)


def test_a_checkpoint_of_four_ranks_is_loaded_bitwise_by_any_other_layout(
    launcher: Launcher, run_config: Config, group_of_one: None
) -> None:

    folder = Path(run_config.run.folder)
    folder.mkdir()
    (folder / "config.toml").write_text(write_config(run_config))
    replicas = ["parallel.replicate=2", "parallel.shard=2"]
    expected = launcher.call(4, save_on_ranks, str(folder), replicas)[0]
    lanes = {rank: {"draws": [rank], "waiting": []} for rank in range(4)}  # of all ranks
    for progress, found in launcher.call(2, load_on_ranks, str(folder), []):
        assert progress == Progress(step=7, lanes=lanes)
        assert_same(found, expected)
    progress, found = load_on_ranks(str(folder), [])
    assert progress == Progress(step=7, lanes=lanes)
    assert_same(found, expected)


@pytest.mark.usefixtures("group_of_one")
def test_the_last_checkpoints_are_kept(run_config: Config) -> None:
    parts = trained(run_config)
    for step in (8, 9, 10, 11):
        CheckpointWriter(run_config, *parts).save(replace(PROGRESS, step=step))
    kept = sorted(path.name for path in Path(run_config.run.folder, "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000011"]


@pytest.mark.usefixtures("group_of_one")
def test_a_complete_checkpoint_is_not_written_again(run_config: Config) -> None:
    parts = trained(run_config)
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    folder = checkpoint_folder(run_config.run.folder, 7)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.usefixtures("group_of_one")
def test_a_save_that_dies_leaves_no_checkpoint_and_is_made_good_by_the_next(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained(run_config)
    folder = checkpoint_folder(run_config.run.folder, 7)

    def save_half(state: Any, storage_writer: dcp.FileSystemWriter) -> None:
        Path(storage_writer.checkpoint_id, "__0_0.distcp").write_bytes(b"half")
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", save_half)
        with pytest.raises(OSError, match="the disk is gone"):
            CheckpointWriter(run_config, *parts).save(PROGRESS)
    assert not folder.exists()
    assert find_latest(run_config.run.folder) is None
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000007"]
    other = trained(run_config, seed=1)
    load_checkpoint(folder, run_config, *other)
    assert_same(tensors(*other), tensors(*parts))


def needed_bytes(folder: str) -> int:
    """What the room check of a save on two replicas asks for."""
    config = load_config(f"{folder}/config.toml", ["parallel.replicate=2", "parallel.shard=2"])
    asked: list[int] = []
    checkpoint.check_room = lambda final, needed, free: asked.append(needed)
    CheckpointWriter(config, *trained(config)).save(PROGRESS)
    return asked[0]


def test_replicas_need_room_once(launcher: Launcher, run_config: Config) -> None:
    folder = Path(run_config.run.folder)
    folder.mkdir()
    (folder / "config.toml").write_text(write_config(run_config))
    parameters = sum(parameter.nbytes for parameter in OneFlow(run_config).parameters())
    for needed in launcher.call(4, needed_bytes, str(folder)):
        assert 4 * parameters <= needed < 1.02 * 4 * parameters  # weights, average, two moments; and small change


@pytest.mark.usefixtures("group_of_one")
def test_without_room_on_the_disk_nothing_is_written(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = trained(run_config)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors(*parts).values())
    usage = namedtuple("usage", ["free"])
    room = int(1.02 * num_bytes) + 2**20

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(num_bytes // 2))
    folder = f"{run_config.run.folder}/checkpoints/step-00000007"
    needed, left = f"{num_bytes >> 20} MiB", f"{num_bytes // 2 >> 20} MiB"
    with pytest.raises(OSError, match=naming("[Errno 28]", folder, needed, left)):
        CheckpointWriter(run_config, *parts).save(PROGRESS)
    assert not Path(run_config.run.folder).exists()

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(room + 2**15))
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    written = sum(path.stat().st_size for path in checkpoint_folder(run_config.run.folder, 7).iterdir())
    assert written < room  # what was asked for is enough


@pytest.fixture
def background_config(run_config: Config) -> Config:
    return replace(run_config, checkpoint=replace(run_config.checkpoint, background=True))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """What a write waits at after its first twenty tensors."""
    return Gate(monkeypatch)


class Gate:
    """Closed at first: the writing thread stops here in the middle of a part, until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.items = 0
        self.write_item = filesystem._write_item
        monkeypatch.setattr(filesystem, "_write_item", self.wait)

    def wait(self, *arguments: Any) -> Any:
        self.items += 1
        if self.items == 20:
            self.reached.set()
            assert self.opened.wait(TIMEOUT)
        return self.write_item(*arguments)


@pytest.mark.usefixtures("group_of_one")
def test_what_is_written_in_the_background_is_the_state_at_the_save(background_config: Config, gate: Gate) -> None:
    parts = trained(background_config)
    model, optimizer, ema = parts
    expected, folder = tensors(*parts), checkpoint_folder(background_config.run.folder, 7)
    with CheckpointWriter(background_config, *parts) as writer:
        writer.save(PROGRESS)
        assert gate.reached.wait(TIMEOUT)  # and the rest is not written yet
        assert [path.name for path in folder.parent.iterdir()] == ["step-00000007.incomplete"]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-3, torch.ones(()), torch.zeros(()))
        ema.update(model, 3)
        gate.opened.set()
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000007"]
    for name, tensor in tensors(*parts).items():
        assert not torch.equal(tensor, expected[name]), name  # all of it has moved on
    other = trained(background_config, seed=1)
    assert load_checkpoint(folder, background_config, *other) == PROGRESS
    assert_same(tensors(*other), expected)


@pytest.mark.usefixtures("group_of_one")
def test_each_save_in_the_background_writes_its_own_state(background_config: Config) -> None:
    model, optimizer, ema = trained(background_config)
    expected = {}
    with CheckpointWriter(background_config, model, optimizer, ema) as writer:
        for step in (7, 8):
            ema.update(model, step)
            expected[step] = tensors(model, optimizer, ema)
            writer.save(replace(PROGRESS, step=step))
    assert not torch.equal(expected[7]["ema embed.weight"], expected[8]["ema embed.weight"])
    for step in (7, 8):
        other = trained(background_config, seed=1)
        load_checkpoint(checkpoint_folder(background_config.run.folder, step), background_config, *other)
        assert_same(tensors(*other), expected[step])


@pytest.mark.usefixtures("group_of_one")
def test_a_save_waits_for_the_one_under_way(background_config: Config, gate: Gate) -> None:
    parts = trained(background_config)
    folder = checkpoint_folder(background_config.run.folder, 7)
    with CheckpointWriter(background_config, *parts) as writer:
        writer.save(PROGRESS)
        assert gate.reached.wait(TIMEOUT)
        opener = threading.Timer(0.2, gate.opened.set)
        opener.start()
        writer.save(replace(PROGRESS, step=8))
        assert gate.opened.is_set()
        assert read_progress(folder) == PROGRESS
        opener.join()
    assert find_latest(background_config.run.folder) == checkpoint_folder(background_config.run.folder, 8)


@pytest.mark.usefixtures("group_of_one")
def test_a_write_that_fails_in_the_background_is_raised_by_the_next_save(
    background_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("the disk is gone")

    parts = trained(background_config)
    writer = CheckpointWriter(background_config, *parts)
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "_write_item", fail)
        writer.save(PROGRESS)
        with pytest.raises(CheckpointException) as error:
            writer.save(replace(PROGRESS, step=8))
    step, failures = error.value.args
    assert (step, str(failures[0][0])) == ("write", "the disk is gone")
    assert find_latest(background_config.run.folder) is None
    writer.wait()  # it has been raised, and is not raised again
    writer.save(replace(PROGRESS, step=9))
    writer.wait()
    assert find_latest(background_config.run.folder) == checkpoint_folder(background_config.run.folder, 9)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_that_cannot_get_its_name_fails_as_a_part_that_cannot_be_written(
    background: bool, background_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(background_config, checkpoint=replace(background_config.checkpoint, background=background))
    writer = CheckpointWriter(config, *trained(config))
    monkeypatch.setattr(Path, "rename", lambda *paths: 1 / 0)
    with pytest.raises(CheckpointException, match="ZeroDivisionError"), writer:
        writer.save(PROGRESS)
    assert find_latest(config.run.folder) is None


@pytest.mark.usefixtures("group_of_one")
def test_a_run_that_fails_keeps_the_checkpoint_under_way_and_its_own_error(
    background_config: Config, gate: Gate
) -> None:
    def run() -> None:
        with CheckpointWriter(background_config, *trained(background_config)) as writer:
            writer.save(PROGRESS)
            assert gate.reached.wait(TIMEOUT)
            threading.Timer(0.2, gate.opened.set).start()
            raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError, match="not finite"):
        run()
    assert find_latest(background_config.run.folder) == checkpoint_folder(background_config.run.folder, 7)


@pytest.mark.usefixtures("group_of_one")
def test_multiples_are_kept_beside_the_last_checkpoints(run_config: Config) -> None:
    config = replace(run_config, checkpoint=replace(run_config.checkpoint, keep=1, keep_every_steps=4))
    writer = CheckpointWriter(config, *trained(config))
    for step in (7, 8, 9, 10):
        writer.save(replace(PROGRESS, step=step))
    kept = sorted(path.name for path in Path(config.run.folder, "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000010"]


@pytest.mark.usefixtures("group_of_one")
def test_tensors_of_another_model_are_named_and_nothing_is_loaded(run_config: Config) -> None:
    model, optimizer, ema = trained(run_config)
    CheckpointWriter(run_config, model, optimizer, ema).save(PROGRESS)
    folder = checkpoint_folder(run_config.run.folder, 7)
    wider = trained(run_config, seed=1)
    wider[0].heads.zero = nn.Linear(32, 2)  # as a later version of the program might have it
    wider = wider[0], AdamW(wider[0], run_config.optim), MovingAverage(wider[0], 0.5)
    before = wider[0].embed.weight.clone()
    weight, bias = ("heads.zero.weight", "[3, 32]", "[2, 32]"), ("heads.zero.bias", "[3]", "[2]")
    with pytest.raises(ValueError, match=naming(folder, 8, *weight, *bias, *weight)):
        load_checkpoint(folder, run_config, *wider)
    assert torch.equal(wider[0].embed.weight, before)


@pytest.mark.usefixtures("group_of_one")
def test_the_optimizer_follows_the_config_that_the_run_continues_with(
    run_config: Config, make_config: Callable[..., Config]
) -> None:
    CheckpointWriter(run_config, *trained(run_config)).save(PROGRESS)
    changed = ["optim.weight_decay=0.25", "optim.beta1=0.5", "optim.beta2=0.75", "optim.eps=1e-5"]
    config = make_config(f"run.folder={run_config.run.folder}", *changed)
    model, optimizer, ema = trained(config)
    load_checkpoint(checkpoint_folder(config.run.folder, 7), config, model, optimizer, ema)
    assert optimizer.config == config.optim


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.mlp_width=64", ("model.mlp_width", 48, 64)),
        ("data.window_samples=5", ("data.window_samples", 5)),
        ("run.seed=3", ("run.seed", 0, 3)),
        ("objective.canvas_tokens=8", ("objective.canvas_tokens", 0, 8)),
        ("model.rope_scaling=8", ("model.rope_scaling", 1.0, 8.0)),
        ("modality.image.patch=[8,8]", ("modality.image.patch", "(4, 4)", "(8, 8)")),
        ("modality.image.channels=2", ("modality.image.channels", 1, 2)),
        ("modality.image.token=<|picture|>", ("modality.image.token", "<|image|>", "<|picture|>")),
        (
            "modality.image.adapter=two_layer modality.image.adapter_width=8",
            ("modality.image.adapter", "linear", "two_layer"),
        ),
        (" ".join(overrides("sound", shape="[6]", patch="[2]", channels=2)), ("[modality.sound]",)),
    ],
)
def test_what_a_checkpoint_depends_on_must_be_the_same(
    override: str, named: tuple[object, ...], run_config: Config, make_config: Callable[..., Config]
) -> None:
    parts = trained(run_config)
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    folder = checkpoint_folder(run_config.run.folder, 7)
    with pytest.raises(ValueError, match=naming(folder, *named, "run.folder")):
        load_checkpoint(folder, make_config(f"run.folder={run_config.run.folder}", *override.split()), *parts)


@pytest.mark.usefixtures("group_of_one")
def test_what_a_checkpoint_does_not_depend_on_may_change(
    run_config: Config, make_config: Callable[..., Config]
) -> None:
    parts = trained(run_config)
    CheckpointWriter(run_config, *parts).save(PROGRESS)
    changed = ["train.steps=9", "optim.lr=1.0", "data.workers=3", "data.cached_samples=5", "checkpoint.keep=1"]
    changed += ["modality.image.shape=[16, 4]"]  # of what is painted; patches have the shape that they had
    changed += [f"modality.image.{key}" for key in ("loss_weight=0.5", "times=logit_normal", "squeezed_to=2")]
    config = make_config(f"run.folder={run_config.run.folder}", *changed)
    folder = checkpoint_folder(config.run.folder, 7)
    assert load_checkpoint(folder, config, *parts) == PROGRESS
    told = list_changes(folder, config)
    assert any(names(line, "modality.image.loss_weight", 0.5, 1.0) for line in told)
    assert any(names(line, "modality.image.times", "logit_normal", "uniform") for line in told)
