"""The model of a checkpoint, for those who use it: its averaged weights, its config, its tokenizer."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import torch

from oneflow_dist.config import Config, load_config
from oneflow_dist.first_weights import map_tensors, read_json
from oneflow_dist.model.llama import from_llama
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.progress import TOKENIZER, Progress, find_latest, is_complete, read_config, read_progress
from oneflow_dist.runtime import log
from oneflow_dist.stored_tensors import read_weights

EXPORTED = "oneflow.json"  # in a folder of `oneflow export`: the step, and what it was trained on


def load_model(path: str | Path) -> tuple[OneFlow, Config]:
    """The model of a checkpoint, or of the last one of a run folder, and its config.

    Raises:
        ValueError: there is no complete checkpoint, or it is damaged.
    """
    folder = find_checkpoint(path)
    config = config_at_home(folder)
    return load_weights(folder, config), config


def find_checkpoint(path: str | Path) -> Path:
    """The folder of a checkpoint or of an export: `path` itself, or the last checkpoint of a run folder.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    is_whole = is_complete(Path(path)) or is_exported(Path(path))
    folder = Path(path) if is_whole else find_latest(str(path))
    if folder is None:
        raise ValueError(
            f"{path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"
        )
    return folder


def is_exported(folder: Path) -> bool:
    """Whether `oneflow export` has written a folder, which appears when it is whole."""
    return (folder / EXPORTED).is_file()


def progress_of(folder: Path) -> Progress:
    """Where the run of a checkpoint or of an export stood; an export knows no lanes.

    Raises:
        ValueError: it is damaged.
    """
    if not is_exported(folder):
        return read_progress(folder)
    table = read_json(folder / EXPORTED)
    return Progress(step=table["step"], lanes={}, data=table["data"])


def load_weights(folder: Path, config: Config) -> OneFlow:
    """The averaged weights of a checkpoint, or those of an export, on this process's device.

    Raises:
        ValueError: it is damaged.
    """
    model = OneFlow(config).to("cuda" if torch.cuda.is_available() else "cpu")
    if is_exported(folder):
        _take_exported(folder, model, config)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it should
            read_weights("ema", dict(model.named_parameters()), folder, no_dist=True)
    model.load_encoders(next(model.parameters()).device)
    return model.eval()


@torch.no_grad()
def _take_exported(folder: Path, model: OneFlow, config: Config) -> None:
    weights = dict(model.named_parameters())
    found = dict(from_llama(map_tensors(folder), {name: w.shape for name, w in weights.items()}, config, str(folder)))
    missing = [name for name in weights if name not in found]
    if missing:
        raise ValueError(f"{folder}: lacks {len(missing)} tensors, as that of {missing[0]}; copy the folder again")
    for name, value in found.items():
        weights[name].copy_(value)


def config_at_home(folder: Path) -> Config:
    """The config of a checkpoint or of an export; its paths lead to what lies in the folder, from any working folder.

    Raises:
        ValueError: it is damaged.
    """
    config, data = _config_of(folder), progress_of(folder).data
    home = folder if is_exported(folder) else Path(data.get("working_folder", ""))
    copy, now = folder / TOKENIZER, home / config.data.tokenizer.partition("#")[0]
    if copy.exists() and now.is_file() and now.read_bytes() != copy.read_bytes():
        log(f"data.tokenizer: {now} is no longer the file that this run was trained with; using the copy in {folder}")
    tokenizer = str(copy) if copy.exists() else config.data.tokenizer
    modalities = {
        name: dataclasses.replace(modality, codec=str(home / modality.codec)) if modality.has_folder else modality
        for name, modality in config.modality.items()
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer), modality=modalities)


def _config_of(folder: Path) -> Config:
    return load_config(folder / "config.toml") if is_exported(folder) else read_config(folder)
