from __future__ import annotations

import json
import shutil
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
from torch.distributed.tensor import DTensor

from oneflow_dist.checkpoint import (
    Progress,
    checkpoint_folder,
    find_latest,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage, make_optimizer
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.parallel.sharding import shard_model
from tests.launching import Launcher

Trained = tuple[OneFlow, torch.optim.Optimizer, MovingAverage]


def trained(config: Config, seed: int = 0) -> Trained:
    """A model on this process's ranks, its optimizer and its average after two steps on made-up gradients."""
    mesh = make_mesh(config.parallel, dist.get_world_size(), "cpu")
    with torch.device("meta"):
        model = OneFlow(config)
    shard_model(model, mesh, config.train)
    model.to_empty(device="cpu")
    initialize(model, seed, config.model.num_layers)
    optimizer, ema = make_optimizer(model, config.optim), MovingAverage(model, 0.5)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = 0.1 * step + parameter.detach()
        optimizer.step()
        ema.update(model, step)
    optimizer.zero_grad()
    return model, optimizer, ema


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer, ema: MovingAverage) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint must bring back, as whole tensors."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach()
        found[f"ema {name}"] = ema.tensors[name]
        for key, value in optimizer.state[parameter].items():
            found[f"{key} {name}"] = value
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
    save_checkpoint(run_config, PROGRESS, *saved)
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
    save_checkpoint(config, Progress(step=7, lanes={rank: {"draws": [rank], "waiting": []}}), *parts)
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
def test_load_model_brings_the_averaged_weights(run_config: Config) -> None:
    model, optimizer, ema = trained(run_config)
    save_checkpoint(run_config, PROGRESS, model, optimizer, ema)
    for path in (run_config.run.folder, checkpoint_folder(run_config.run.folder, 7)):
        loaded, config = load_model(path)
        assert config == run_config
        assert not loaded.training
        for name, parameter in loaded.named_parameters():
            assert torch.equal(parameter, ema.tensors[name]), name
            if "norm" not in name:
                assert not torch.equal(parameter, model.get_parameter(name)), name


def test_load_model_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"
    )


@pytest.mark.usefixtures("group_of_one")
def test_the_last_checkpoints_are_kept(run_config: Config) -> None:
    parts = trained(run_config)
    for step in (8, 9, 10, 11):
        save_checkpoint(run_config, replace(PROGRESS, step=step), *parts)
    kept = sorted(path.name for path in Path(run_config.run.folder, "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000011"]


@pytest.mark.usefixtures("group_of_one")
def test_an_incomplete_folder_does_not_take_the_place_of_a_checkpoint_to_keep(run_config: Config) -> None:
    config = replace(run_config, checkpoint=replace(run_config.checkpoint, keep=1))
    torn = checkpoint_folder(config.run.folder, 99)  # as a copy that was broken off leaves it
    torn.mkdir(parents=True)
    save_checkpoint(config, PROGRESS, *trained(config))
    assert find_latest(config.run.folder) == checkpoint_folder(config.run.folder, 7)


@pytest.mark.usefixtures("group_of_one")
def test_a_complete_checkpoint_is_not_written_again(run_config: Config) -> None:
    parts = trained(run_config)
    save_checkpoint(run_config, PROGRESS, *parts)
    folder = checkpoint_folder(run_config.run.folder, 7)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    save_checkpoint(run_config, PROGRESS, *parts)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.usefixtures("group_of_one")
def test_a_save_that_dies_leaves_no_checkpoint_and_is_made_good_by_the_next(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained(run_config)
    folder = checkpoint_folder(run_config.run.folder, 7)

    def save_half(state: Any, checkpoint_id: str) -> None:
        Path(checkpoint_id, "__0_0.distcp").write_bytes(b"half")
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", save_half)
        with pytest.raises(OSError, match="the disk is gone"):
            save_checkpoint(run_config, PROGRESS, *parts)
    assert not folder.exists()
    assert find_latest(run_config.run.folder) is None
    save_checkpoint(run_config, PROGRESS, *parts)
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000007"]
    other = trained(run_config, seed=1)
    load_checkpoint(folder, run_config, *other)
    assert_same(tensors(*other), tensors(*parts))


@pytest.mark.usefixtures("group_of_one")
def test_without_room_on_the_disk_nothing_is_written(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = trained(run_config)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors(*parts).values())
    usage = namedtuple("usage", ["free"])
    room = int(1.02 * num_bytes) + 2**20

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(num_bytes // 2))
    with pytest.raises(OSError) as error:
        save_checkpoint(run_config, PROGRESS, *parts)
    assert str(error.value) == (
        f"[Errno 28] {run_config.run.folder}/checkpoints/step-00000007: the checkpoint needs {num_bytes >> 20} MiB but "
        f"the disk has {num_bytes // 2 >> 20} MiB left; make room and run the same command again: it continues from "
        "the last checkpoint"
    )
    assert not Path(run_config.run.folder).exists()

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(room + 2**15))
    save_checkpoint(run_config, PROGRESS, *parts)
    written = sum(path.stat().st_size for path in checkpoint_folder(run_config.run.folder, 7).iterdir())
    assert written < room  # what was asked for is enough


def test_incomplete_checkpoints_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_latest(str(tmp_path)) is None
    names = ("step-00000010", "step-00000020.incomplete", "step-00000030")
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert find_latest(str(tmp_path)) is None
    ends = [f"{tmp_path}/checkpoints/{name} is incomplete (no COMPLETE file) and ignored; " for name in reversed(names)]
    assert capsys.readouterr().out.splitlines() == [f"{start}there is no complete one" for start in ends]
    (tmp_path / "checkpoints/step-00000010/COMPLETE").touch()
    assert find_latest(str(tmp_path)) == tmp_path / "checkpoints/step-00000010"
    assert capsys.readouterr().out.splitlines() == [
        f"{start}the last complete one is step-00000010" for start in ends[:2]
    ]


@pytest.mark.usefixtures("group_of_one")
def test_the_optimizer_follows_the_config_that_the_run_continues_with(
    run_config: Config, make_config: Callable[..., Config]
) -> None:
    save_checkpoint(run_config, PROGRESS, *trained(run_config))
    changed = ["optim.weight_decay=0.25", "optim.beta1=0.5", "optim.beta2=0.75", "optim.eps=1e-5"]
    config = make_config(f"run.folder={run_config.run.folder}", *changed)
    model, optimizer, ema = trained(config)
    load_checkpoint(checkpoint_folder(config.run.folder, 7), config, model, optimizer, ema)
    settings = [(group["weight_decay"], group["betas"], group["eps"]) for group in optimizer.param_groups]
    assert settings == [(0.25, (0.5, 0.75), 1e-5), (0.0, (0.5, 0.75), 1e-5)]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.mlp_width=64", "model.mlp_width is 48 there but 64 here"),
        ("data.window_samples=5", "data.window_samples is"),
        ("run.seed=3", "run.seed is 0 there but 3 here"),
    ],
)
def test_what_a_checkpoint_depends_on_must_be_the_same(
    override: str, message: str, run_config: Config, make_config: Callable[..., Config]
) -> None:
    parts = trained(run_config)
    save_checkpoint(run_config, PROGRESS, *parts)
    folder = checkpoint_folder(run_config.run.folder, 7)
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder, make_config(f"run.folder={run_config.run.folder}", override), *parts)
    assert str(error.value).startswith(f"{folder}: {message}")
    assert str(error.value).endswith(
        "; set another run.folder to start anew, or take the checkpoint's value to continue"
    )


@pytest.mark.usefixtures("group_of_one")
def test_what_a_checkpoint_does_not_depend_on_may_change(
    run_config: Config, make_config: Callable[..., Config]
) -> None:
    parts = trained(run_config)
    save_checkpoint(run_config, PROGRESS, *parts)
    changed = ["train.steps=9", "optim.lr=1.0", "data.workers=3", "data.cached_samples=5", "checkpoint.keep=1"]
    config = make_config(f"run.folder={run_config.run.folder}", *changed)
    assert load_checkpoint(checkpoint_folder(config.run.folder, 7), config, *parts) == PROGRESS


@pytest.mark.usefixtures("group_of_one")
def test_progress_is_plain_json(run_config: Config) -> None:
    save_checkpoint(run_config, PROGRESS, *trained(run_config))
    text = (checkpoint_folder(run_config.run.folder, 7) / "progress.json").read_text()
    assert json.loads(text) == {
        "format": 3,
        "step": 7,
        "lanes": {str(index): lane for index, lane in PROGRESS.lanes.items()},
        "guard": {"norm_mean": 0.1 + 0.2, "accepted": 6, "skipped": 1},
    }
