from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.checkpoint import CheckpointWriter
from oneflow_dist.config import Config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.progress import Progress, checkpoint_folder
from oneflow_dist.trained import config_at_home, load_model

SOUND: dict[str, Any] = {"codec": "spectrogram@8000", "shape": (8,), "patch": (4,)}


@pytest.fixture
def run_config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    return make_config(f"run.folder={tmp_path / 'run'}")


def save(config: Config, model: OneFlow, ema: MovingAverage, progress: Progress) -> None:
    CheckpointWriter(config, model, AdamW(model, config.optim), ema).save(progress)


@pytest.mark.usefixtures("group_of_one")
def test_a_model_has_the_averaged_weights(run_config: Config, make_model: Callable[..., OneFlow]) -> None:
    model, ema = make_model(run_config), MovingAverage(make_model(run_config, seed=1), 0.5)
    save(run_config, model, ema, Progress(step=7, lanes={}))
    for path in (run_config.run.folder, checkpoint_folder(run_config.run.folder, 7)):
        loaded, config = load_model(path)
        assert replace(config, data=run_config.data) == run_config  # the vocabulary is the checkpoint's copy
        assert not loaded.training
        for name, parameter in loaded.named_parameters():
            assert torch.equal(parameter, ema.tensors[name]), name


def test_without_a_checkpoint_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_model(tmp_path)


@pytest.mark.usefixtures("group_of_one")
def test_paths_lead_to_the_checkpoints_own_ranks_file_and_to_where_the_run_was_started(
    run_config: Config, make_model: Callable[..., OneFlow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = tmp_path / "words.tiktoken"
    ranks.write_bytes(Path(run_config.data.tokenizer).read_bytes())
    config = replace(
        run_config,
        data=replace(run_config.data, tokenizer=ranks.name),
        modality={
            "image": replace(run_config.modality["image"], codec="vae"),
            "sound": replace(run_config.modality["image"], token="<|sound|>", **SOUND),
        },
    )
    model = make_model(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        save(
            config, model, MovingAverage(model, 0.5), Progress(step=7, lanes={}, data={"working_folder": str(tmp_path)})
        )
    folder = checkpoint_folder(config.run.folder, 7)
    found = config_at_home(folder)
    assert Path(found.data.tokenizer).read_bytes() == ranks.read_bytes()
    assert folder in Path(found.data.tokenizer).parents
    assert found.modality["image"].codec == str(tmp_path / "vae")
    assert found.modality["sound"] == config.modality["sound"]  # whose codec is no path
    assert str(ranks) not in capsys.readouterr().out
    ranks.write_bytes(b"another")
    assert config_at_home(folder) == found
    assert str(ranks) in capsys.readouterr().out


@pytest.mark.usefixtures("group_of_one")
def test_what_is_frozen_has_its_own_weights_beside_the_averages(
    run_config: Config, make_model: Callable[..., OneFlow]
) -> None:
    model = make_model(run_config)
    model.embed.weight.requires_grad_(False)
    ema = MovingAverage(model, 0.5)
    for average in ema.tensors.values():
        average.add_(1.0)
    save(run_config, model, ema, Progress(step=7, lanes={}))
    loaded, _ = load_model(run_config.run.folder)
    for name, parameter in loaded.named_parameters():
        own = model.get_parameter(name)
        assert torch.equal(parameter, own if name == "embed.weight" else own + 1.0), name
