"""Whether a node has what a run begins with: data that can be read, and shared memory. For jobs and for the doctor."""

from __future__ import annotations

import shutil
from pathlib import Path

from oneflow_dist.config import Config

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_MIB = 32  # that NCCL needs at the least; what dead processes have left there stays
SHARED_MEMORY_ADVICE = "delete what dead processes have left there, or start the container with --shm-size=1g"


def free_shared_memory() -> int:
    """In MiB."""
    return shutil.disk_usage(SHARED_MEMORY).free >> 20


def check_shared_memory() -> None:
    """Is there room in /dev/shm?

    Raises:
        ValueError: there is not.
    """
    if (free := free_shared_memory()) < SHARED_MEMORY_MIB:
        raise ValueError(
            f"{SHARED_MEMORY} has {free} MiB left, and NCCL needs {SHARED_MEMORY_MIB}; {SHARED_MEMORY_ADVICE}"
        )


def check_data(config: Config) -> None:
    """Look at all that a run trains on.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    check_tokenizer(config)
    check_mixture(config.data.mixture)


def check_tokenizer(config: Config) -> str:
    """Read the tokenizer; says how large it is.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    from oneflow_dist.data.tokenizer import load_tokenizer  # here, as below, since all of data imports torch

    return f"{load_tokenizer(config.data.tokenizer, config.modality).vocab_size} tokens"


def check_mixture(path: str) -> str:
    """Read a sample of the first shard of every source; says how many shards there are.

    Raises:
        ValueError, OSError: one of them cannot be read.
    """
    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.data.shards import is_remote, list_shards, open_shards

    num_shards, sources = 0, load_mixture(path)
    for source in sources:
        shards = list_shards(source.name, source.shards)
        num_shards += len(shards)
        opened = open_shards(source.name, shards[0], source.index)
        if not is_remote(shards[0]):  # that one would be fetched whole
            opened.read(0)
    return f"{num_shards} shards of {len(sources)} sources"
