"""The weights of a checkpoint as Hugging Face stores them."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.first_weights import INDEX
from oneflow_dist.model.llama import stored_tensors
from oneflow_dist.model.lora import Lora
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.stored_tensors import read_weights

FILE_BYTES = 5 * 10**9  # of one file of weights, about; as transformers writes them
FREE_SHARE = 1.01  # of the weights' bytes: what must be free before they are written


def gather_weights(folder: Path, config: Config, kind: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The weights of a checkpoint under the names of Hugging Face, as many to a file as fit.

    Host memory holds them once, in `dtype`; what a Lora has learnt is added to the weight beside it.

    Args:
        kind: averaged ("ema") or as last trained ("model").
    """
    with torch.device("meta"):
        model = OneFlow(config)
    adapted = {n.removesuffix("lora"): lora for n, lora in model.named_modules() if isinstance(lora, Lora)}
    tensors = {
        name: torch.empty(parameter.shape, dtype=torch.float32 if name.startswith(tuple(adapted)) else dtype)
        for name, parameter in model.named_parameters()
    }
    read_weights(kind, tensors, folder, no_dist=True)
    for product, lora in adapted.items():
        merge_lora(lora, product, tensors, dtype)
    stored: dict[str, Tensor] = {}
    for name in list(tensors):  # a joined product is cut into copies, and gone then
        stored |= stored_tensors(name, tensors.pop(name), config.model)
    return split(stored, FILE_BYTES)


def check_room(folder: Path, output: Path, needed: int) -> None:
    """Whether the disk of a folder has so many bytes left.

    Raises:
        OSError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * FREE_SHARE + 2**20:
        raise OSError(
            errno.ENOSPC, f"{output}: needs {needed >> 20} MiB but the disk has {free >> 20} MiB left; make room"
        )


def write_weights(folder: Path, files: list[dict[str, Tensor]]) -> None:
    """Write files of safetensors, with an index where there are several."""
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(map(num_bytes, files))}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


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
