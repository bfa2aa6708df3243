from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_dist.checkpoint import CheckpointWriter
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import NoisySample, PackedBatch
from oneflow_dist.data.packing import pack
from oneflow_dist.first_weights import Start, start_from
from oneflow_dist.model.llama import stored_tensors, to_llama_config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.progress import Progress
from oneflow_dist.trained import load_model
from oneflow_dist.training import build_model
from tests.launching import Launcher, read_checkpoint, read_metrics
from tests.messages import Message, naming
from tests.modalities import SOUND

LLAMA = [
    "objective.kind=autoregressive",
    "model.rope_scaling=8.0",
    "model.rope_theta=500000.0",
    "heads.time_conditioning=none",
]
TIED, UNTIED = "model.tie_embeddings=true", "model.tie_embeddings=false"
# Of the tokens of two documents: across 2048, where frequencies begin to be stretched, 8192, and far beyond.
POSITIONS = [
    [0, 1, 2, 3, 70, 900, 2047, 2048, 2049, 5000, 8191, 8192, 8193, 20000, 60000, 100000],
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
]
Command = Callable[..., list[str]]


@pytest.fixture
def start(train_command: Command, tmp_path: Path) -> Callable[..., tuple[OneFlow, Config, Start]]:
    """A model of a Llama's trunk, which has started from a folder."""

    def make(folder: Path, *overrides: str) -> tuple[OneFlow, Config, Start]:
        _, _, path, *others = train_command(tmp_path / "run", *LLAMA)
        return started(load_config(path, [*others, f"init.path={folder}", *overrides]))

    return make


def started(config: Config) -> tuple[OneFlow, Config, Start]:
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    return model, config, start_from(config, model, make_optimizer(model, config))


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
    batch = pack([make_noisy(rng, num_tokens=len(places), **sizes) for places in POSITIONS], None, sees="past")
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


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("tie", [TIED, UNTIED])
def test_logits_of_a_llama_are_those_of_transformers(
    tie: str, start: Callable[..., Any], make_llama: Callable[..., Any], make_noisy: Callable[..., NoisySample]
) -> None:
    llama, folder = make_llama(tie)
    model, config, found = start(folder, tie)
    assert found.lines[0].startswith(Message(f"starting from {folder}: {15 + (tie == UNTIED)} parameters"))
    assert "adapters.image.time.hidden.weight, " in found.lines[1]
    assert len(found.lines) == 2  # all that Llama has was taken
    batch = documents(make_noisy, config.model.vocab_size)
    assert_same_logits(own_logits(model, batch), their_logits(llama, batch))
    assert torch.equal(model.adapters.image.norm.weight, model.heads.norm.weight)


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


@pytest.mark.usefixtures("group_of_one")
def test_logits_of_known_tokens_are_those_of_llama_where_the_vocabulary_is_larger(
    start: Callable[..., Any], make_llama: Callable[..., Any], make_noisy: Callable[..., NoisySample]
) -> None:
    llama, folder = make_llama(TIED)
    model, _, _ = start(folder, TIED, "model.vocab_size=520")
    batch = documents(make_noisy, 512)
    logits = own_logits(model, batch)
    assert_same_logits(logits[:, :512], their_logits(llama, batch))
    known, new = logits[:, :512], logits[:, 512:]
    assert (new < known.max(dim=1, keepdim=True).values).all()  # no new token is the likeliest
    assert (new - known.mean(dim=1, keepdim=True)).abs().max() < 0.5 * known.std()


def test_a_run_starts_from_the_weights_of_llama(
    launcher: Launcher, train_command: Command, make_llama: Callable[..., Any], tmp_path: Path
) -> None:
    """With next to no learning rate: after steps on two ranks, weights and average are still Llama's."""
    llama, folder = make_llama(TIED, dtype=torch.bfloat16)
    steps = ("optim.lr=1e-12", "train.steps=2", "checkpoint.every_steps=1", "checkpoint.keep=1", TIED)
    command = train_command(tmp_path / "run", *LLAMA, "sampling.every_steps=0", *steps, f"init.path={folder}")
    ends = launcher.run_ranks(2, *command)
    assert ends[0].code == 0, ends[0].stderr
    assert f"starting from {folder}" in ends[0].stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    state = read_checkpoint(tmp_path / "run/checkpoints/step-00000002", tmp_path / "state.pt")
    config = load_config(tmp_path / "run/config.toml")
    for kind in ("model", "ema"):
        names = [name.removeprefix(f"{kind}.") for name in state if name.startswith(f"{kind}.")]
        tables = [stored_tensors(name, state[f"{kind}.{name}"], config.model) for name in names]
        stored = {there: value for table in tables for there, value in table.items()}
        for there, parameter in llama.named_parameters():
            value = stored[there]
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, parameter.float(), rtol=0.0, atol=1e-9, msg=f"{kind} {there}")
    ends = launcher.run_ranks(2, *command[:-1], "init.path=gone", "train.steps=3")  # one that goes on looks not there
    assert ends[0].code == 0, ends[0].stderr


@pytest.fixture
def trained(make_config: Callable[..., Config], tmp_path: Path, group_of_one: None) -> Config:
    """The config of a checkpoint whose weights, average and moments are all different."""
    config = make_config(f"run.folder={tmp_path / 'trained'}", "model.tie_embeddings=false")
    model = build_model(config, make_mesh(config, 1, "cpu"), torch.device("cpu"))
    optimizer, ema = AdamW(model, config.optim), MovingAverage(model, 0.5)
    generator = torch.Generator().manual_seed(0)
    for tensors in (ema.tensors, optimizer.first_moments, optimizer.second_moments):
        for tensor in tensors.values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    CheckpointWriter(config, model, optimizer, ema).save(Progress(step=7, lanes={}, data={"tokenizer": "its hash"}))
    return config


def averages(config: Config) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_model(config.run.folder)[0].named_parameters()}


def from_there(config: Config, *changes: tuple[str, Any], **init: Any) -> Config:
    """A config of a run that starts from another's, with other values of [model]."""
    own = dataclasses.replace(config.init, path=config.run.folder, **init)
    model, run = dataclasses.replace(config.model, **dict(changes)), dataclasses.replace(config.run, folder="new")
    return dataclasses.replace(config, init=own, model=model, run=run)


def test_averaged_or_raw_weights_of_a_run_are_taken_and_fresh_moments(trained: Config) -> None:
    model, _, found = started(from_there(trained))
    average = averages(trained)
    assert found.data == {"tokenizer": "its hash"}
    assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
    raw, _, _ = started(from_there(trained, weights="model"))
    fresh = build_model(trained, make_mesh(trained, 1, "cpu"), torch.device("cpu"))
    for (name, found_raw), first in zip(raw.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(found_raw, first), name


def test_the_state_of_the_optimizer_is_taken_where_it_is_asked_for(trained: Config) -> None:
    config = from_there(trained, ("vocab_size", 600), optimizer=True)
    model = build_model(config, make_mesh(config, 1, "cpu"), torch.device("cpu"))
    optimizer = AdamW(model, config.optim)
    found = start_from(config, model, optimizer)
    assert all(moment.any() for name, moment in optimizer.first_moments.items() if "embed" not in name)
    assert not optimizer.first_moments["embed.weight"].any()  # of another shape there
    count = 2 * len(optimizer.weights) + 1
    assert f"{count - 4} of {count}" in found.lines[-1]


def test_what_patterns_do_not_name_starts_anew_and_brings_no_meaning_of_tokens(trained: Config) -> None:
    config = from_there(trained, tensors=("blocks.0.*", "heads.*"))
    model, _, found = started(config)
    average, fresh = averages(trained), build_model(config, make_mesh(config, 1, "cpu"), torch.device("cpu"))
    for (name, parameter), first in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, average[name] if name.startswith(("blocks.0.", "heads.")) else first), name
    assert found.data == {}


def test_a_vocabulary_and_a_list_of_modalities_may_have_grown_and_parts_may_be_new_or_gone(
    trained: Config, make_config: Callable[..., Config]
) -> None:
    grown = make_config(*SOUND, "model.tie_embeddings=false", "heads.time_conditioning=token", "model.qk_norm=true")
    config = dataclasses.replace(from_there(trained, ("vocab_size", 600), ("qk_norm", True)), modality=grown.modality)
    config = dataclasses.replace(config, heads=grown.heads)
    model, _, found = started(config)
    average = averages(trained)
    for name, parameter in model.named_parameters():
        if name in average:
            assert torch.equal(parameter[: len(average[name])], average[name]), name
    new, left = found.lines[1:]
    assert "adapters.sound." in new
    assert "blocks.*.attention.query_norm.weight" in new
    assert "heads.modulation.linear.weight" in left
    assert "adapters.image.text_modulation.linear.weight" in left
    assert "adapters.image" not in new


def whole_weights(config_path: str, overrides: list[str]) -> dict[str, Tensor]:
    model, _, _ = started(load_config(config_path, overrides))
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("axis", ["parallel.shard=2", "parallel.tensor=2"])
def test_ranks_start_from_a_run_and_from_a_llama(
    axis: str, trained: Config, launcher: Launcher, make_llama: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    config = from_there(trained, ("vocab_size", 600))
    path.write_text(write_config(config))
    expected = dict(started(config)[0].named_parameters())
    for found in launcher.call(2, whole_weights, str(path), [axis]):
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    _, folder = make_llama(TIED)
    debug = ["configs/debug.toml", [*LLAMA, TIED, f"init.path={folder}", "model.vocab_size=520"]]
    expected = whole_weights(*debug)
    for found in launcher.call(2, whole_weights, debug[0], [*debug[1], axis]):
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_what_does_not_fit_is_refused_in_one_line(trained: Config, tmp_path: Path) -> None:
    for config, named in (
        (
            from_there(trained, ("rope_theta", 5.0)),
            (trained.run.folder, f"model.rope_theta={trained.model.rope_theta}"),
        ),
        (from_there(trained, ("vocab_size", 500)), (trained.run.folder, "embed.weight", [512, 32], [500, 32])),
        (from_there(trained, tensors=("block.*",)), ("init.tensors", "'block.*'")),
    ):
        with pytest.raises(ValueError, match=naming(*named)):
            started(config)
    nowhere = dataclasses.replace(trained.init, path=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=naming(tmp_path / "gone/config.json", "init.path")):
        started(dataclasses.replace(trained, init=nowhere))
    with pytest.raises(ValueError, match=naming("init.optimizer", tmp_path / "gone")):
        started(dataclasses.replace(trained, init=dataclasses.replace(nowhere, optimizer=True)))


@pytest.mark.usefixtures("group_of_one")
def test_a_folder_that_no_run_can_start_from_is_refused_in_one_line(
    start: Callable[..., Any], make_llama: Callable[..., Any]
) -> None:
    _, folder = make_llama(TIED)

    def error_of(*overrides: str) -> Message:
        with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
            start(folder, *overrides)
        return Message(str(error.value).removeprefix(str(folder)))

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
    assert error_of(TIED).startswith("/config.json: no such file; ")
