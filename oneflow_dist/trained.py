"""The model of a checkpoint, for those who use it: its averaged weights, its config, its tokenizer."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import torch

from oneflow_dist.config import Config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.progress import TOKENIZER, find_latest, is_complete, read_config, read_progress
from oneflow_dist.runtime import log
from oneflow_dist.stored_tensors import read_weights


def load_model(path: str | Path) -> tuple[OneFlow, Config]:
    """The model of a checkpoint, or of the last one of a run folder, and its config.

    Raises:
        ValueError: there is no complete checkpoint, or it is damaged.
    """
    folder = find_checkpoint(path)
    config = config_at_home(folder)
    return load_weights(folder, config), config


def find_checkpoint(path: str | Path) -> Path:
    """The folder of a checkpoint: `path` itself, or the last one of a run folder.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    folder = Path(path) if is_complete(Path(path)) else find_latest(str(path))
    if folder is None:
        raise ValueError(
            f"{path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"
        )
    return folder


def load_weights(folder: Path, config: Config) -> OneFlow:
    """The averaged weights of a checkpoint, on this process's device.

    Raises:
        ValueError: it is damaged.
    """
    model = OneFlow(config).to("cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it should
        read_weights("ema", dict(model.named_parameters()), folder, no_dist=True)
    model.load_encoders(next(model.parameters()).device)
    return model.eval()


def config_at_home(folder: Path) -> Config:
    """The config of a checkpoint; its paths lead to the checkpoint's copy of the ranks file, from any working folder.

    Raises:
        ValueError: it is damaged.
    """
    config, data = read_config(folder), read_progress(folder).data
    home = Path(data.get("working_folder", ""))
    copy, now = folder / TOKENIZER, home / config.data.tokenizer.partition("#")[0]
    if copy.exists() and now.is_file() and now.read_bytes() != copy.read_bytes():
        log(f"data.tokenizer: {now} is no longer the file that this run was trained with; using the copy in {folder}")
    tokenizer = str(copy) if copy.exists() else config.data.tokenizer
    modalities = {
        name: dataclasses.replace(modality, codec=str(home / modality.codec)) if modality.has_folder else modality
        for name, modality in config.modality.items()
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer), modality=modalities)
