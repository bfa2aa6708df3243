from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import NoisySample, PackedBatch
from oneflow_dist.data.packing import pack
from oneflow_dist.model.llama import stored_tensors, to_llama_config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.trained import load_model
from tests.launching import Finished, Launcher, Run, only_error, read_checkpoint, read_metrics
from tests.messages import Message

LLAMA = ["model.is_causal=true", "model.rope_scaling=8.0", "model.rope_theta=500000.0", "heads.time_conditioning=none"]
TIED, UNTIED = "model.tie_embeddings=true", "model.tie_embeddings=false"
# Of the tokens of two documents: across 2048, where frequencies begin to be stretched, 8192, and far beyond.
POSITIONS = [
    [0, 1, 2, 3, 70, 900, 2047, 2048, 2049, 5000, 8191, 8192, 8193, 20000, 60000, 100000],
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
]
Command = Callable[..., list[str]]


@pytest.fixture
def command(train_command: Command, tmp_path: Path) -> Command:
    """The arguments of a run in `tmp_path / name` with a Llama's trunk; without the module, those of export.py."""

    def make(name: str, *overrides: str, program: bool = True) -> list[str]:
        arguments = train_command(tmp_path / name, *LLAMA, "sampling.every_steps=0", *overrides)
        return arguments if program else arguments[2:]

    return make


@pytest.fixture
def make_llama(train_command: Command, tmp_path: Path) -> Callable[..., tuple[LlamaForCausalLM, Path]]:
    """A Llama whose every weight matters, and its folder as transformers writes it."""

    def make(*overrides: str, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, Path]:
        config = load_config("configs/debug.toml", [*LLAMA, *overrides])
        llama = LlamaForCausalLM(LlamaConfig(**to_llama_config(config, dtype))).to(dtype).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in llama.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(noise + 1.0 if "norm" in name else noise)
        llama.save_pretrained(tmp_path / "llama")
        return llama, tmp_path / "llama"

    return make


def documents(make_noisy: Callable[..., NoisySample], vocab_size: int) -> PackedBatch:
    """Two documents of text in one pack, at POSITIONS."""
    rng = np.random.default_rng(0)
    sizes = {"num_images": 0, "num_bag_tokens": 0, "vocab_size": vocab_size}
    batch = pack([make_noisy(rng, num_tokens=len(places), **sizes) for places in POSITIONS], None)
    position = torch.tensor([place for places in POSITIONS for place in places], dtype=torch.float32)
    return dataclasses.replace(batch, position=position[:, None].expand(-1, 3).contiguous())


def own_logits(model: OneFlow, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        return model.bag_logits(model(batch).slot_hidden)


def their_logits(llama: LlamaForCausalLM, batch: PackedBatch) -> Tensor:
    """Of one document after the other."""
    found = []
    for tokens, places in zip(batch.tokens.split([len(p) for p in POSITIONS]), POSITIONS, strict=True):
        # With a mask: without, transformers takes a gap between positions for the border of two documents.
        given = {"attention_mask": torch.ones(1, len(places)), "position_ids": torch.tensor([places])}
        with torch.no_grad():
            found.append(llama(tokens[None], **given).logits[0])
    return torch.cat(found)


def assert_same_logits(own: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.5  # there is something to compare
    torch.testing.assert_close(own, theirs, rtol=0.0, atol=1e-5 * float(theirs.abs().max()))


def to_checkpoint(launcher: Launcher, folder: Path, arguments: list[str]) -> Finished:
    return launcher.run("tools/export.py", "checkpoint", folder, *arguments)


def to_safetensors(launcher: Launcher, *arguments: str | Path) -> Finished:
    return launcher.run("tools/export.py", "safetensors", *arguments)


@pytest.mark.parametrize("tie", [TIED, UNTIED])
def test_logits_of_a_llama_are_those_of_transformers_both_ways(
    tie: str,
    launcher: Launcher,
    command: Command,
    make_llama: Callable[..., Any],
    make_noisy: Callable[..., NoisySample],
    tmp_path: Path,
) -> None:
    llama, folder = make_llama(tie)
    end = to_checkpoint(launcher, folder, command("run", tie, program=False))
    assert end.code == 0, end.stderr
    place = tmp_path / "run/checkpoints/step-00000000"
    lines = end.stdout.splitlines()
    assert lines[0].startswith(f"wrote {place}: {15 + (tie == UNTIED)} parameters from {folder}, ")
    assert "  parameters that the folder does not have: adapters.image.time.hidden.weight, " in end.stdout
    model, config = load_model(place)
    batch = documents(make_noisy, config.model.vocab_size)
    expected = their_logits(llama, batch)
    assert_same_logits(own_logits(model, batch), expected)
    assert torch.equal(model.adapters.image.norm.weight, model.heads.norm.weight)

    end = to_safetensors(launcher, tmp_path / "run", tmp_path / "out", "--dtype", "fp32")
    assert end.code == 0, end.stderr
    again, report = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all(name.startswith("oneflow.") for name in report["unexpected_keys"])
    assert torch.equal(their_logits(again, batch), expected)


def test_order_and_neighbours_matter_to_a_causal_model(
    make_config: Callable[..., Config],
    make_model: Callable[..., OneFlow],
    make_noisy: Callable[..., NoisySample],
) -> None:
    """What comes later changes nothing, what came before does; the other document neither."""
    model = make_model(make_config(*LLAMA))
    batch = documents(make_noisy, 256)
    changed = dataclasses.replace(batch, tokens=batch.tokens.clone())
    changed.tokens[9] = (changed.tokens[9] + 1) % 256
    is_changed = (own_logits(model, batch) != own_logits(model, changed)).any(dim=1)
    assert is_changed.nonzero().flatten().tolist() == list(range(9, 16))


def test_logits_of_known_tokens_are_those_of_llama_where_the_vocabulary_is_larger(
    launcher: Launcher,
    command: Command,
    make_llama: Callable[..., Any],
    make_noisy: Callable[..., NoisySample],
    tmp_path: Path,
) -> None:
    llama, folder = make_llama(TIED)
    end = to_checkpoint(launcher, folder, command("run", TIED, "model.vocab_size=520", program=False))
    assert end.code == 0, end.stderr
    assert "  tokens 512 to 519 are new\n" in end.stdout
    model, _ = load_model(tmp_path / "run")
    batch = documents(make_noisy, 512)
    logits = own_logits(model, batch)
    assert_same_logits(logits[:, :512], their_logits(llama, batch))
    known, new = logits[:, :512], logits[:, 512:]
    assert (new < known.max(dim=1, keepdim=True).values).all()  # no new token is the likeliest
    assert (new - known.mean(dim=1, keepdim=True)).abs().max() < 0.5 * known.std()


def test_a_run_starts_from_the_weights_of_llama(
    launcher: Launcher, command: Command, make_llama: Callable[..., Any], tmp_path: Path
) -> None:
    """With next to no learning rate: after a step on two ranks, weights and average are still Llama's."""
    llama, folder = make_llama(TIED, dtype=torch.bfloat16)
    steps = ("optim.lr=1e-12", "train.steps=2", "checkpoint.every_steps=1", "checkpoint.keep=1", TIED)
    assert to_checkpoint(launcher, folder, command("run", *steps, program=False)).code == 0
    ends = launcher.run_ranks(2, *command("run", *steps))
    assert ends[0].code == 0, ends[0].stderr
    assert "continuing from" in ends[0].stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    state = read_checkpoint(tmp_path / "run/checkpoints/step-00000002", tmp_path / "state.pt")
    config = load_config(tmp_path / "run/config.toml")
    for kind in ("model", "ema"):
        stored = as_stored(state, kind, config)
        for there, parameter in llama.named_parameters():
            value = stored[there]
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, parameter.float(), rtol=0.0, atol=1e-9, msg=f"{kind} {there}")
    kept = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {"step-00000000", "step-00000002"}


def as_stored(state: dict[str, Any], kind: str, config: Config) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint as a folder has them; kind: "model" or "ema"."""
    stored: dict[str, torch.Tensor] = {}
    for name in (name.removeprefix(f"{kind}.") for name in state if name.startswith(f"{kind}.")):
        stored |= stored_tensors(name, state[f"{kind}.{name}"], config.model)
    return stored


def debug_overrides(run: Run, folder: Path) -> list[str]:
    return [str(run.folder / "config.toml"), f"run.folder={folder}"]


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_an_exported_folder_reloads_bitwise(weights: str, launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    """A trained model with all of OneFlow's own parameters, through fp32 files and back."""
    arguments = [] if weights == "ema" else ["--weights", "model"]
    end = to_safetensors(launcher, unbroken.folder, tmp_path / "out", "--dtype", "fp32", *arguments)
    assert end.code == 0, end.stderr
    state = read_checkpoint(unbroken.folder / "checkpoints/step-00000020", tmp_path / "state.pt")
    names = [name.removeprefix("ema.") for name in state if name.startswith("ema.")]
    stored = as_stored(state, weights, load_config(unbroken.folder / "config.toml"))
    place = unbroken.folder / "checkpoints/step-00000020"
    assert end.stdout.splitlines() == [
        f"wrote {len(stored)} tensors of {place} ({weights}) to {tmp_path / 'out'}; files of weights: 1",
        "  model.is_causal is false, but transformers lets no row look ahead: its logits are not this model's",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "config.toml",
        "model.safetensors",
    ]
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "state.pt").stat().st_mode}  # whoever may read a new file may read the model
    assert load_config(tmp_path / "out/config.toml") == load_config(unbroken.folder / "config.toml")
    end = to_checkpoint(launcher, tmp_path / "out", debug_overrides(unbroken, tmp_path / "run"))
    assert end.code == 0, end.stderr
    assert end.stdout.endswith("parameters that the folder does not have: none\n")
    back = read_checkpoint(tmp_path / "run/checkpoints/step-00000000", tmp_path / "back.pt")
    assert len(back) == len(names)
    assert any(not torch.equal(state[f"ema.{name}"], state[f"model.{name}"]) for name in names)
    for name in names:
        assert torch.equal(back[f"model.{name}"], state[f"{weights}.{name}"]), name


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
    end = to_safetensors(launcher, tmp_path, tmp_path / "out")
    assert (end.code, only_error(end)) == (
        2,
        f"error: {tmp_path}: no complete checkpoint here or in its checkpoints/; name another folder",
    )
    (tmp_path / "out").mkdir()
    end = to_safetensors(launcher, unbroken.folder, tmp_path / "out")
    assert (end.code, only_error(end)) == (
        2,
        f"error: {tmp_path / 'out'}: exists; move it away, or name another folder",
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_what_no_run_can_start_from_is_refused_in_one_line(
    launcher: Launcher, command: Command, make_llama: Callable[..., Any], tmp_path: Path
) -> None:
    _, folder = make_llama(TIED)

    def error_of(*overrides: str) -> str:
        end = to_checkpoint(launcher, folder, command("run", *overrides, program=False))
        assert end.code == 2
        assert not (tmp_path / "run").exists()
        return Message(only_error(end).removeprefix(f"error: {folder}"))

    assert error_of(UNTIED, "model.mlp_width=64") == (
        "/config.json: a Llama of another shape than the config's; set model.mlp_width=96, model.tie_embeddings=true"
    )
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.ones(7)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert error_of(TIED) == ": model.norm.weight is [7], but heads.norm.weight is [48]; take the config it is of"
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert error_of(TIED).startswith("/model.safetensors: broken (")
    (folder / "model.safetensors").unlink()
    assert error_of(TIED).startswith("/model.safetensors: no such file; ")
    (folder / "config.json").write_text("[1]")
    assert error_of(TIED) == "/config.json: not a table; copy it again"
    (folder / "config.json").write_text("{")
    assert error_of(TIED).startswith("/config.json: not valid JSON: ")
    (folder / "config.json").unlink()
    assert error_of(TIED).startswith("/config.json: no such file; name a folder of Hugging Face, ")


def test_a_run_that_has_checkpoints_keeps_them(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    assert to_safetensors(launcher, unbroken.folder, tmp_path / "out").code == 0
    before = sorted(unbroken.folder.rglob("*"))
    end = to_checkpoint(launcher, tmp_path / "out", debug_overrides(unbroken, unbroken.folder))
    assert end.code == 2
    assert only_error(end) == (
        f"error: {unbroken.folder}: has checkpoints already; name another run.folder, or move them away"
    )
    assert sorted(unbroken.folder.rglob("*")) == before
