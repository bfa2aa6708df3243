"""[init]: the weights that a run starts from, of another run, an exported folder or a Llama."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from oneflow_dist.config import Config
from oneflow_dist.model.axis import local_part
from oneflow_dist.model.initialization import local_indices
from oneflow_dist.model.llama import check_llama_config, fit_tokens, from_llama, stored_names
from oneflow_dist.optim import AdamW
from oneflow_dist.progress import find_latest, is_complete, read_config, read_progress
from oneflow_dist.stored_tensors import named_leaves, read_some, stored_shapes, weights_there

INDEX = "model.safetensors.index.json"
FREE = ("vocab_size", "qk_norm")  # keys of [model] that may be others than there


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What was taken, in lines for people, and what the weights were trained on, see data/identity.py."""

    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def start_from(config: Config, model: nn.Module, optimizer: AdamW) -> Start:
    """Fill what this rank holds of the weights that `init.tensors` names; the others stay as they are.

    Raises:
        ValueError: nothing is there to start from, or it is damaged or does not fit the config.
    """
    path = Path(config.init.path)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    unused = [p for p in config.init.tensors if not fnmatch.filter(weights, p)]
    if unused:
        raise ValueError(f"init.tensors: {unused[0]!r} names no parameter; the first is called {next(iter(weights))}")
    wanted = {n: w for n, w in weights.items() if any(fnmatch.fnmatchcase(n, p) for p in config.init.tensors)}
    folder = path if is_complete(path) else find_latest(str(path))
    if folder is None:
        if config.init.optimizer:
            raise ValueError(f"init.optimizer: {path} is no checkpoint, so no optimizer is in it; set it to false")
        return Start(lines=_tell(str(path), wanted, *_from_folder(path, config, wanted)))
    lines = _tell(f"{folder} ({config.init.weights})", wanted, *_from_checkpoint(folder, config, wanted))
    if config.init.optimizer:
        lines += _from_optimizer(folder, optimizer)
    have_meaning = any(not name.startswith(("blocks.", "heads.")) for name in wanted)  # tokens or latents
    return Start(lines=lines, data=read_progress(folder).data if have_meaning else {})


def _from_checkpoint(folder: Path, config: Config, wanted: dict[str, Tensor]) -> tuple[set[str], list[str]]:
    """Read the weights that are there into their places; returns their names, and of those that have no place."""
    theirs = dataclasses.asdict(read_config(folder).model)
    ours = dataclasses.asdict(config.model)
    differing = [f"model.{key}={value!r}" for key, value in theirs.items() if key not in FREE and ours[key] != value]
    if differing:
        raise ValueError(f"{folder}: a trunk of another shape than the config's; set {', '.join(differing)}")
    there = weights_there(folder, config.init.weights)
    state: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}}
    taken = [name for name in wanted if name in there]
    for name in taken:
        table, shape = there[name]
        is_grown = shape != wanted[name].shape
        state[table][name] = torch.empty(shape) if is_grown else wanted[name]
    read_some(state, folder)
    for name, value in {**state["model"], **state["ema"]}.items():
        if value is not wanted[name]:
            _put(wanted[name], fit_tokens(name, value, wanted[name].shape, config.run.seed, f"{folder}: {name}"))
    return set(taken), [name for name in there if name not in wanted]


def _from_folder(folder: Path, config: Config, wanted: dict[str, Tensor]) -> tuple[set[str], list[str]]:
    """As `_from_checkpoint`, of safetensors; weights stay in their file until they are copied, one after the other."""
    check_llama_config(read_json(folder / "config.json"), config, str(folder / "config.json"))
    stored = map_tensors(folder)
    taken = set()
    for name, value in from_llama(stored, {n: w.shape for n, w in wanted.items()}, config, str(folder)):
        _put(wanted[name], value)
        taken.add(name)
    known = {there for name in wanted for there in stored_names(name)}
    return taken, [name for name in stored if name not in known]


def _from_optimizer(folder: Path, optimizer: AdamW) -> list[str]:
    """Read what is there of the optimizer's state."""
    there = stored_shapes(folder)
    state = {f"optimizer.{name}": value for name, value in named_leaves(optimizer.tensors)}
    taken = {name: value for name, value in state.items() if there.get(name) == value.shape}
    read_some(taken, folder)
    return [f"  optimizer: {len(taken)} of {len(state)} tensors from there; the others are fresh"]


def _put(parameter: Tensor, whole: Tensor) -> None:
    """This rank's part of a value into its place."""
    for dim in range(parameter.ndim):
        whole = whole.index_select(dim, local_indices(parameter, dim).to(whole.device))
    local_part(parameter).copy_(whole)


def _tell(where: str, wanted: Iterable[str], taken: set[str], surplus: list[str]) -> list[str]:
    new = [name for name in wanted if name not in taken]
    lines = [f"starting from {where}: {len(taken)} parameters from there, {len(new)} new"]
    named = {"new": new, "not taken": surplus}
    return lines + [f"  {what}: {_in_short(names)}" for what, names in named.items() if names]


def _in_short(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\bblocks\.\d+", "blocks.*", name) for name in names))


def map_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors, memory-mapped: read when they are used.

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
        raise ValueError(f"{path}: no such file; init.path is a run, a checkpoint, or a folder with config.json")
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: not a table; copy it again")
    return table
