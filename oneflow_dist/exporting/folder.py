"""A checkpoint as a folder that others can load: it appears when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from oneflow_dist.config import Config, LoraConfig, write_config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.exporting.card import Facts, write_card
from oneflow_dist.exporting.remote_config import to_remote_config
from oneflow_dist.exporting.tokenizer import write_tokenizer
from oneflow_dist.exporting.weights import check_room, gather_weights, num_bytes, write_weights
from oneflow_dist.files import sync_folder
from oneflow_dist.model.autoencoder import CONFIG, WEIGHTS, load_autoencoder
from oneflow_dist.model.llama import to_llama_config
from oneflow_dist.progress import TOKENIZER, Progress, read_progress
from oneflow_dist.trained import EXPORTED, config_at_home, is_exported
from oneflow_dist.version import package_version

Format = Literal["oneflow", "transformers", "diffusers"]
REMOTE = Path(__file__).parent / "remote"
CODE = ("modeling_oneflow.py", "writing_oneflow.py")
PIPELINE = "pipeline_oneflow.py"
NETWORK, TOKENS = "transformer", "tokenizer"  # folders of a pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user asks for."""

    format: Format = "oneflow"
    weights: Literal["ema", "model"] = "ema"
    dtype: torch.dtype = torch.bfloat16
    licence: str = ""  # SPDX name, for the card
    about: Path | None = None  # Markdown that begins the card
    copies_autoencoder: bool = True


def export(checkpoint: Path, output: Path, options: Options, run: Path) -> str:
    """Write the folder, and say in a line what is there.

    Args:
        checkpoint: a complete one.
        run: whose reports and pictures the card shows.

    Raises:
        ValueError: `output` exists, the checkpoint is an export itself, or the format cannot hold this model.
        OSError: not enough room on the disk.
    """
    if output.exists():
        raise ValueError(f"{output}: exists; move it away, or name another folder")
    if is_exported(checkpoint):
        raise ValueError(f"{checkpoint}: is an export itself; name the run or the checkpoint that it was made of")
    about = options.about.read_text(encoding="utf-8") if options.about else ""
    home, progress = config_at_home(checkpoint), read_progress(checkpoint)
    tokenizer = load_tokenizer(home.data.tokenizer, home.modality)
    codecs = {name: own.codec for name, own in home.modality.items() if own.has_folder and own.is_target}
    brings_code, is_pipeline = options.format != "oneflow", options.format == "diffusers"
    places = _name_folders(codecs, "../vae" if is_pipeline else "autoencoder") if options.copies_autoencoder else {}
    own = (home, options.dtype)
    table = to_remote_config(*own, tokenizer, places) if brings_code else to_llama_config(*own)
    files = gather_weights(checkpoint, home, options.weights, options.dtype)
    whole = _make_room(output, sum(map(num_bytes, files)))
    beside = whole / NETWORK if is_pipeline else whole
    beside.mkdir(exist_ok=True)
    write_weights(beside, files)
    _write_json(beside / "config.json", table)
    autoencoders = {name: _copy_autoencoder(codec, beside, places.get(name)) for name, codec in codecs.items()}
    config, origin = _as_exported(home, places), _describe_origin(progress, options, autoencoders)
    _write_own(beside, config, origin, tokenizer)
    if brings_code:
        write_tokenizer(beside, tokenizer)
        for name in CODE:
            shutil.copy(REMOTE / name, beside / name)
    if is_pipeline:
        _add_pipeline(whole, tokenizer, places)
    facts = Facts(
        name=output.name,
        config=config,
        origin=origin,
        num_parameters=sum(tensor.numel() for tensors in files for tensor in tensors.values()),
        format=options.format,
        licence=options.licence,
        about=about,
    )
    write_card(whole, facts, run)
    _finish(whole, output)
    num_tensors = sum(map(len, files))
    return (
        f"wrote {num_tensors} tensors of {checkpoint} ({options.weights}) to {output}; files of weights: {len(files)}"
    )


def _describe_origin(progress: Progress, options: Options, autoencoders: dict[str, Any]) -> dict[str, Any]:
    """Where the weights come from, without paths of the machine."""
    return {
        "format": 1,
        "oneflow_dist": package_version(),
        "step": progress.step,
        "weights": options.weights,
        "data": {key: value for key, value in progress.data.items() if key != "working_folder"},
        "autoencoders": autoencoders,
    }


def _write_own(folder: Path, config: Config, origin: dict[str, Any], tokenizer: Tokenizer) -> None:
    """What this package reads of an export, beside the weights."""
    _write_json(folder / EXPORTED, origin)
    (folder / "config.toml").write_text(write_config(config))
    if config.data.tokenizer != "bytes":
        (folder / TOKENIZER).write_bytes(tokenizer.content)


def _make_room(output: Path, needed: int) -> Path:
    """An empty folder beside the output, on a disk with so many bytes left."""
    beside = output.with_name(output.name + ".incomplete")
    shutil.rmtree(beside, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_room(output.parent, output, needed)
    beside.mkdir()
    return beside


def _add_pipeline(folder: Path, tokenizer: Tokenizer, places: dict[str, str]) -> None:
    """What diffusers looks for beside the network."""
    (folder / TOKENS).mkdir()
    write_tokenizer(folder / TOKENS, tokenizer)
    shutil.copy(REMOTE / PIPELINE, folder / PIPELINE)
    parts: dict[str, list[str | None]] = {
        NETWORK: ["modeling_oneflow", "OneFlowModel"],
        TOKENS: ["transformers", "PreTrainedTokenizerFast"],
        "vae": ["diffusers", "AutoencoderKL"] if places else [None, None],
    }
    name = Path(PIPELINE).stem
    _write_json(folder / "model_index.json", {"_class_name": [name, "OneFlowPipeline"], **parts})


def _name_folders(codecs: dict[str, str], name: str) -> dict[str, str]:
    """By modality the folder of its autoencoder, from that of the weights; one autoencoder lies there once."""
    different = list(dict.fromkeys(codecs.values()))
    names = {codec: name if number == 0 else f"{name}-{number}" for number, codec in enumerate(different)}
    return {name: names[codec] for name, codec in codecs.items()}


def _copy_autoencoder(codec: str, beside: Path, place: str | None) -> dict[str, str | int | float]:
    """Copy an autoencoder where it has a place, and say which one it is."""
    if place is not None and not (beside / place).exists():
        (beside / place).mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copy(Path(codec) / name, beside / place / name)
    return load_autoencoder(codec, "cpu", torch.float32).describe()


def _as_exported(config: Config, places: dict[str, str]) -> Config:
    """The config with paths that begin in the exported folder, and without a Lora, which the weights have taken in."""
    modality = {
        name: replace(own, codec=places.get(name, Path(own.codec).name)) if own.has_folder else own
        for name, own in config.modality.items()
    }
    tokenizer = "bytes" if config.data.tokenizer == "bytes" else TOKENIZER
    return replace(config, lora=LoraConfig(), modality=modality, data=replace(config.data, tokenizer=tokenizer))


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n")


def _finish(beside: Path, output: Path) -> None:
    """On the disk, readable for whoever may read new files, then under its name."""
    mode = (beside / "README.md").stat().st_mode  # safetensors lets nobody else read its files
    for path in (path for path in beside.rglob("*") if path.is_file()):
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    beside.rename(output)
    sync_folder(output.absolute().parent)
