from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from oneflow_dist.checkpoint import CheckpointWriter
from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import NoisySample
from oneflow_dist.data.packing import pack
from oneflow_dist.first_weights import start_from
from oneflow_dist.model.llama import stored_tensors
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.progress import Progress
from oneflow_dist.trained import load_model
from oneflow_dist.training import build_model
from tests.launching import Finished, Launcher, Run, oneflow, only_error, read_checkpoint
from tests.messages import names


def to_safetensors(launcher: Launcher, *arguments: str | Path) -> Finished:
    return launcher.run(*oneflow("export"), *arguments)


def as_stored(state: dict[str, Any], kind: str, config: Config) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint as a folder has them; kind: "model" or "ema"."""
    stored: dict[str, torch.Tensor] = {}
    for name in (name.removeprefix(f"{kind}.") for name in state if name.startswith(f"{kind}.")):
        stored |= stored_tensors(name, state[f"{kind}.{name}"], config.model)
    return stored


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_an_exported_folder_reloads_bitwise(weights: str, launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    """A trained model with all of OneFlow's own parameters, through fp32 files and back."""
    arguments = [] if weights == "ema" else ["--weights", "model"]
    end = to_safetensors(launcher, unbroken.folder, tmp_path / "out", "--dtype", "fp32", *arguments)
    assert end.code == 0, end.stderr
    state = read_checkpoint(unbroken.folder / "checkpoints/step-00000020", tmp_path / "state.pt")
    known = [name.removeprefix("ema.") for name in state if name.startswith("ema.")]
    stored = as_stored(state, weights, load_config(unbroken.folder / "config.toml"))
    place = unbroken.folder / "checkpoints/step-00000020"
    assert names(end.stdout, len(stored), place, weights, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "config.toml",
        "model.safetensors",
        "oneflow.json",
        "samples.png",
        "tokenizer.tiktoken",
    ]
    own = load_config(unbroken.folder / "config.toml", ["data.tokenizer=tokenizer.tiktoken"])
    assert load_config(tmp_path / "out/config.toml") == own
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "state.pt").stat().st_mode}  # whoever may read a new file may read the model
    config = load_config(unbroken.folder / "config.toml", [f"init.path={tmp_path / 'out'}"])
    model = build_model(config, make_mesh(config, 1, "cpu"), torch.device("cpu"))
    assert len(start_from(config, model, AdamW(model, config.optim)).lines) == 1  # nothing is new, nothing left
    back = dict(model.named_parameters())
    assert back.keys() == set(known)
    assert any(not torch.equal(state[f"ema.{name}"], state[f"model.{name}"]) for name in known)
    for name in known:
        assert torch.equal(back[name], state[f"{weights}.{name}"]), name


def test_weights_are_rounded_to_bf16_unless_asked_for_in_fp32(
    launcher: Launcher, unbroken: Run, tmp_path: Path
) -> None:
    end = to_safetensors(launcher, unbroken.folder / "checkpoints/step-00000010", tmp_path / "deep/out")
    assert end.code == 0, end.stderr
    state = read_checkpoint(unbroken.folder / "checkpoints/step-00000010", tmp_path / "state.pt")
    stored = load_file(tmp_path / "deep/out/model.safetensors")
    config = load_config(unbroken.folder / "config.toml")
    for name, tensor in as_stored(state, "ema", config).items():
        assert torch.equal(stored[name], tensor.bfloat16()), name
    assert json.loads((tmp_path / "deep/out/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(tmp_path / "deep/out").dtype == torch.bfloat16


def test_what_cannot_be_exported_is_refused(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    assert names(only_error(to_safetensors(launcher, tmp_path, tmp_path / "out")), tmp_path, "no complete checkpoint")
    (tmp_path / "out").mkdir()
    assert names(only_error(to_safetensors(launcher, unbroken.folder, tmp_path / "out")), tmp_path / "out", "exists")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("group_of_one")
def test_what_a_lora_has_learnt_is_merged_and_says_the_same(
    launcher: Launcher,
    make_config: Callable[..., Config],
    make_model: Callable[..., OneFlow],
    make_noisy: Callable[..., NoisySample],
    tmp_path: Path,
) -> None:
    config = make_config(f"run.folder={tmp_path / 'run'}", "lora.rank=3", "lora.alpha=4.0", "lora.dropout=0.5")
    model = make_model(config, noise=0.05).eval()  # of the size of weights that are trained
    optimizer, ema = AdamW(model, config.optim), MovingAverage(model, 0.5)
    CheckpointWriter(config, model, optimizer, ema).save(Progress(step=7, lanes={}))
    end = to_safetensors(launcher, tmp_path / "run", tmp_path / "out", "--dtype", "fp32")
    assert end.code == 0, end.stderr
    merged = load_config(tmp_path / "out/config.toml", [f"init.path={tmp_path / 'out'}"])
    assert merged.lora.rank == 0
    plain = build_model(merged, make_mesh(merged, 1, "cpu"), torch.device("cpu"))
    assert len(start_from(merged, plain, AdamW(plain, merged.optim)).lines) == 1
    batch = pack([make_noisy(np.random.default_rng(0))], None)
    with torch.no_grad():
        expected, found = model(batch), plain(batch)
    assert torch.equal(expected.slot_hidden, load_model(tmp_path / "run")[0](batch).slot_hidden)
    for name in ("zero_logit", "log_rate", "bag_loss", "slot_hidden"):
        own, theirs = getattr(found, name), getattr(expected, name)
        assert (own - theirs).norm() <= 1e-6 * theirs.norm(), name
    for own, theirs in zip(found.velocity, expected.velocity, strict=True):
        assert (own - theirs).norm() <= 1e-6 * theirs.norm()
