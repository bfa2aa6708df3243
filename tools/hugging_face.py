"""Folders as Hugging Face has them, from checkpoints and to them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from oneflow_dist.checkpoint import write_initial_checkpoint
from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.files import sync_folder
from oneflow_dist.model.llama import check_llama_config, from_llama, stored_tensors, to_llama_config
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.progress import checkpoint_folder, find_latest, is_complete, read_progress
from oneflow_dist.stored_tensors import read_tensors

FILE_BYTES = 5 * 10**9  # of one file of weights, about; as transformers writes them
FREE_SHARE = 1.01  # of the weights' bytes: what must be free before they are written
INDEX = "model.safetensors.index.json"


def to_safetensors(checkpoint: Path, output: Path, weights: str, dtype: torch.dtype) -> None:
    """Write the weights of a checkpoint under the names of Hugging Face, with config.json and our config.toml.

    Host memory holds them once, in `dtype`. The folder appears when it is whole.

    Raises:
        ValueError: there is no complete checkpoint, or `output` exists.
        OSError: not enough room on the disk.
    """
    folder = checkpoint if is_complete(checkpoint) else find_latest(str(checkpoint))
    if folder is None:
        raise ValueError(f"{checkpoint}: no complete checkpoint here or in its checkpoints/; name another folder")
    if output.exists():
        raise ValueError(f"{output}: exists; move it away, or name another folder")
    config = load_config(folder / "config.toml")
    tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in parameter_shapes(config).items()}
    kind = "model" if read_progress(folder).step == 0 else weights  # what a run starts from has no average
    read_tensors({kind: tensors}, folder, no_dist=True)
    stored: dict[str, Tensor] = {}
    for name in list(tensors):  # a joined product is cut into copies, and gone then
        stored |= stored_tensors(name, tensors.pop(name), config.model)
    files = split(stored, FILE_BYTES)
    write_folder(output, files, config, dtype)
    print(f"wrote {len(stored)} tensors of {folder} ({kind}) to {output}; files of weights: {len(files)}")
    if not config.model.is_causal:
        print("  model.is_causal is false, but transformers lets no row look ahead: its logits are not this model's")


def write_folder(output: Path, files: list[dict[str, Tensor]], config: Config, dtype: torch.dtype) -> None:
    """Write a folder in the layout of Hugging Face beside its place, and move it there."""
    beside = output.with_name(output.name + ".incomplete")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    needed = sum(map(num_bytes, files))
    free = shutil.disk_usage(beside).free
    if free < needed * FREE_SHARE + 2**20:
        beside.rmdir()
        raise OSError(
            errno.ENOSPC, f"{output}: needs {needed >> 20} MiB but the disk has {free >> 20} MiB left; make room"
        )
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, beside / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        (beside / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (beside / "config.json").write_text(json.dumps(to_llama_config(config, dtype), indent=2) + "\n")
    (beside / "config.toml").write_text(write_config(config))
    mode = (beside / "config.json").stat().st_mode  # safetensors lets nobody else read its files
    for path in beside.iterdir():
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    beside.rename(output)
    sync_folder(output.absolute().parent)


def split(tensors: dict[str, Tensor], file_bytes: int) -> list[dict[str, Tensor]]:
    """The tensors in order, as many to a file as fit; one that fits in none has its own."""
    files: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if files[-1] and num_bytes(files[-1]) + tensor.nbytes > file_bytes:
            files.append({})
        files[-1][name] = tensor
    return files


def num_bytes(tensors: dict[str, Tensor]) -> int:
    """Of all of them."""
    return sum(tensor.nbytes for tensor in tensors.values())


def to_checkpoint(folder: Path, config: Config) -> None:
    """Write checkpoints/step-00000000 of the run from a Llama, or from what `to_safetensors` has written.

    Weights stay in their file and in their dtype until they are written; training holds them in float32.

    Raises:
        ValueError: the folder and the config do not fit, or the run has a checkpoint.
    """
    table = read_json(folder / "config.json")
    check_llama_config(table, config, str(folder / "config.json"))
    tensors, new = from_llama(map_tensors(folder), parameter_shapes(config), config, str(folder))
    first = checkpoint_folder(config.run.folder, 0)
    write_initial_checkpoint(first, config, tensors)
    print(f"wrote {first}: {len(tensors) - len(new)} parameters from {folder}, {len(new)} new")
    added = config.model.vocab_size - table["vocab_size"]
    if added:
        print(f"  tokens {table['vocab_size']} to {config.model.vocab_size - 1} are new")
    parts = dict.fromkeys(re.sub(r"^blocks\.\d+", "blocks.*", name) for name in new)
    print(f"  parameters that the folder does not have: {', '.join(parts) or 'none'}")


def map_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, memory-mapped: read when they are used.

    Raises:
        ValueError: a file is missing or broken.
    """
    files = ["model.safetensors"]
    if (folder / INDEX).is_file():
        files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for path in (folder / name for name in files):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; copy the folder of the model again, with all its safetensors")
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
        except SafetensorError as error:
            raise ValueError(f"{path}: broken ({error}); copy it again") from error
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A table.

    Raises:
        ValueError: no such file, or no JSON.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a folder of Hugging Face, with config.json and safetensors")
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: not a table; copy it again")
    return table


def parameter_shapes(config: Config) -> dict[str, torch.Size]:
    """Of a model of this config, by name."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in OneFlow(config).named_parameters()}
