"""The tensors of a checkpoint: are they all there, whole, and those that the model needs?"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

NAMED = 3  # tensors of each kind that an error names
INDEX_TYPES = {  # of which DCP's .metadata is made, by their module
    "torch.distributed.checkpoint.metadata": {"Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"}
    | {"TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath"},
}


class _IndexUnpickler(pickle.Unpickler):
    """Makes what an index is made of and nothing else: a pickle may name any function, to be called when it is read."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # so Python 3.11.2 pickles the one enum that an index has
            return lambda _, member: _MEM_FORMAT_ENCODING[member]
        module = module.removesuffix("._local")  # Python 3.13's name of pathlib
        if name not in INDEX_TYPES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an index and might do harm")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    """Reads this rank's parts, and says which checkpoint it is that cannot be read; runs nothing that comes with it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As FileSystemReader, which would unpickle whatever is there."""
        with self.fs.create_stream(self._get_metadata_path(), "rb") as file:
            index: Metadata = _IndexUnpickler(file).load()
        return index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """As FileSystemReader; DCP tells every rank when one fails."""
        try:
            return super().read_data(plan, planner)
        except Exception as error:
            # Of torch's text only its beginning: on damaged bytes it goes on to advise an unsafe way of loading.
            raise ValueError(f"{self.path}: {str(error).partition('. ')[0]}") from error


def read_tensors(state: dict[str, Any], folder: Path, no_dist: bool = False) -> None:
    """Fill the tensors of `state`, nested tables of them, in place, whatever layout wrote them and in which dtype.

    Args:
        no_dist: this process reads for itself alone.

    Raises:
        ValueError: tensors are missing, not asked for or of another shape, or the checkpoint is damaged.
        CheckpointException: on all ranks, that one could not read its part.
    """
    asked = tuple(f"{name}." for name in state)  # the tables; of others there may be any
    there = {name: size for name, size in stored_shapes(folder).items() if name.startswith(asked)}
    check_tensors(str(folder), there, shapes(state))
    read_some(state, folder, no_dist)


def read_weights(kind: str, weights: dict[str, Tensor], folder: Path, no_dist: bool = False) -> None:
    """Fill the weights of a whole model: averaged ("ema") or as last trained ("model").

    What was frozen has no average, as it never changed.

    Raises:
        ValueError: as `read_tensors`.
    """
    there = weights_there(folder, kind)
    check_tensors(str(folder), {name: size for name, (_, size) in there.items()}, shapes(weights))
    read_some({of: {n: w for n, w in weights.items() if there[n][0] == of} for of in ("model", "ema")}, folder, no_dist)


def weights_there(folder: Path, kind: str) -> dict[str, tuple[str, torch.Size]]:
    """Of each weight of a checkpoint the table that has it as `read_weights` wants it, and its shape."""
    found: dict[str, tuple[str, torch.Size]] = {}
    for of in dict.fromkeys(("model", kind)):
        shapes_there = stored_shapes(folder).items()
        found |= {name.removeprefix(f"{of}."): (of, size) for name, size in shapes_there if name.startswith(f"{of}.")}
    return found


def read_some(state: dict[str, Any], folder: Path, no_dist: bool = False) -> None:
    """As `read_tensors`, of a checkpoint that is known to have these tensors, and others."""
    reader = Reader(folder)
    _check_whole(folder, _read_index(reader, folder))
    dcp.load(state, storage_reader=reader, no_dist=no_dist)


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """Of all tensors of a checkpoint, by dotted name.

    Raises:
        ValueError: its index cannot be read.
    """
    index = _read_index(Reader(folder), folder).state_dict_metadata
    return {name: value.size for name, value in index.items() if isinstance(value, TensorStorageMetadata)}


def shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    """Whole shapes of the tensors in nested tables, by dotted name."""
    return {name: value.shape for name, value in named_leaves(state) if isinstance(value, Tensor)}


def named_leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """What nested tables hold, each under its dotted name."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, item in value.items() for leaf in named_leaves(item, f"{name}.{key}" if name else str(key))]


def check_tensors(where: str, there: dict[str, torch.Size], here: dict[str, torch.Size]) -> None:
    """Compare the shapes of tensors that are stored with those of a model.

    Raises:
        ValueError: one line that counts and names what is missing, unexpected, or of another shape.
    """
    missing = [name for name in here if name not in there]
    unexpected = [f"{name} {list(there[name])}" for name in there if name not in here]
    differing = [
        f"{name}: {list(there[name])} there, {list(size)} here"
        for name, size in here.items()
        if name in there and there[name] != size
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": differing}
    found = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(
            f"{where}: its tensors are not this model's: {', '.join(found)}; take the config and the version of the "
            "program that wrote it, or set another run.folder"
        )


def _first(names: list[str]) -> str:
    return "; ".join(names[:NAMED]) + ("; ..." if len(names) > NAMED else "")


def _read_index(reader: Reader, folder: Path) -> Metadata:
    try:
        return reader.read_metadata()
    except Exception as error:
        raise ValueError(
            f"{folder}: its index .metadata cannot be read ({error}); move this folder away to continue from the one "
            "before"
        ) from error


def _check_whole(folder: Path, index: Metadata) -> None:
    """Whether every file of a checkpoint is there and as long as its index says."""
    lengths: dict[str, int] = {}
    for place in index.storage_data.values():
        end = place.offset + place.length
        lengths[place.relative_path] = max(end, lengths.get(place.relative_path, 0))
    for name, length in lengths.items():
        if not (folder / name).exists() or (folder / name).stat().st_size < length:
            raise ValueError(
                f"{folder}: {name} is missing or cut off; move this folder away to continue from the one before"
            )
