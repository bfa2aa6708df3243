"""Folders as Hugging Face has them, from checkpoints and to them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from oneflow_dist.config import Config, LoraConfig, load_config, write_config
from oneflow_dist.files import sync_folder
from oneflow_dist.first_weights import INDEX
from oneflow_dist.model.llama import stored_tensors, to_llama_config
from oneflow_dist.model.lora import Lora
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.progress import find_latest, is_complete
from oneflow_dist.stored_tensors import read_weights

FILE_BYTES = 5 * 10**9  # of one file of weights, about; as transformers writes them
FREE_SHARE = 1.01  # of the weights' bytes: what must be free before they are written


def to_safetensors(checkpoint: Path, output: Path, weights: str, dtype: torch.dtype) -> None:
    """Write the weights of a checkpoint under the names of Hugging Face, with config.json and our config.toml.

    Host memory holds them once, in `dtype`; what a Lora has learnt is added to the weight beside it. The folder appears
    when it is whole.

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
    with torch.device("meta"):
        model = OneFlow(config)
    adapted = {n.removesuffix("lora"): lora for n, lora in model.named_modules() if isinstance(lora, Lora)}
    tensors = {
        name: torch.empty(parameter.shape, dtype=torch.float32 if name.startswith(tuple(adapted)) else dtype)
        for name, parameter in model.named_parameters()
    }
    read_weights(weights, tensors, folder, no_dist=True)
    for product, lora in adapted.items():
        merge_lora(lora, product, tensors, dtype)
    config = dataclasses.replace(config, lora=LoraConfig())  # there is none any more
    stored: dict[str, Tensor] = {}
    for name in list(tensors):  # a joined product is cut into copies, and gone then
        stored |= stored_tensors(name, tensors.pop(name), config.model)
    files = split(stored, FILE_BYTES)
    write_folder(output, files, config, dtype)
    print(f"wrote {len(stored)} tensors of {folder} ({weights}) to {output}; files of weights: {len(files)}")
    if not config.objective.looks_back:
        print(
            f'  objective.kind is "{config.objective.kind}", but transformers lets no row look ahead: its logits are '
            "not this model's"
        )


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


def merge_lora(lora: Lora, product: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Add what a Lora has learnt to the weight beside it, and take its own tensors out.

    Args:
        product: the name of the layer and a dot.
        tensors: in float32, by name of the parameter.
    """
    added = lora.added(tensors.pop(f"{product}lora.down"), tensors.pop(f"{product}lora.up"))
    tensors[f"{product}weight"] = (tensors[f"{product}weight"] + added).to(dtype)
