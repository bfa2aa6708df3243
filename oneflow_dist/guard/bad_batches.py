"""The batches behind a step that was not made: found on all ranks, kept on disk, read again."""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor

from oneflow_dist.containers import Counts, PackedBatch, PackedPieces
from oneflow_dist.files import write_whole
from oneflow_dist.runtime import gather_objects

MAX_KEPT = 4  # batches of one step, over all ranks
MAX_NAMED = 8  # samples in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A microbatch that may be the cause."""

    rank: int
    number: int
    loss: float  # infinite where any of its losses is not finite
    keys: tuple[str, ...]


def keep_suspects(
    losses: Float32[Tensor, "m L"], batches: list[PackedBatch], step: int, run_folder: str
) -> tuple[str, str]:
    """Write `bad-batch-*.pt` for the microbatches whose losses are not finite, or else for that of the highest loss.

    All ranks call together. `read_bad_batch` reads such a file.

    Returns:
        Where the trouble is, and what was kept, for a message.
    """
    suspects = _find_suspects(losses, batches)
    kept = suspects[:MAX_KEPT]
    for suspect in kept:
        if suspect.rank == dist.get_rank():
            name = f"bad-batch-step-{step:08d}-rank-{suspect.rank}-pack-{suspect.number}.pt"
            content = io.BytesIO()
            torch.save(dataclasses.asdict(batches[suspect.number].to(torch.device("cpu"))), content)
            write_whole(Path(run_folder) / name, content.getvalue())
    dist.barrier()
    ranks = ", ".join(str(rank) for rank in sorted({suspect.rank for suspect in suspects}))
    keys = [key for suspect in suspects for key in suspect.keys]
    samples = f"samples {', '.join(keys[:MAX_NAMED])} ({len(keys)} in all)"
    which = "their batches are" if len(kept) == len(suspects) else f"{len(kept)} of their batches are"
    files = f"{which} in {run_folder}/bad-batch-*.pt"
    if math.isinf(suspects[0].loss):
        return f"rank {ranks}", f"; {samples}; {files}"
    return "the gradients of all ranks", f"; the highest loss is that of rank {ranks}, {samples}; {files}"


def read_bad_batch(path: str | Path) -> PackedBatch:
    """A batch that a run has kept, on the CPU."""
    table = torch.load(path, weights_only=True)
    pieces = tuple(PackedPieces(**of_kind) for of_kind in table["pieces"])
    return PackedBatch(**{**table, "pieces": pieces, "counts": Counts(**table["counts"])})


def _find_suspects(losses: Float32[Tensor, "m L"], batches: list[PackedBatch]) -> list[Suspect]:
    """All microbatches of all ranks that are not finite; if there are none, the one of the highest loss."""
    totals = torch.where(torch.isfinite(losses).all(1), losses[:, -1], torch.inf).tolist()
    mine = [
        Suspect(rank=dist.get_rank(), number=number, loss=loss, keys=batch.keys)
        for number, (loss, batch) in enumerate(zip(totals, batches, strict=True))
    ]
    of_ranks = gather_objects(mine)
    different = {suspect.keys: suspect for part in reversed(of_ranks) for suspect in reversed(part)}  # first of each
    ranked = sorted(different.values(), key=lambda suspect: (-suspect.loss, suspect.rank, suspect.number))
    return [suspect for suspect in ranked if math.isinf(suspect.loss)] or ranked[:1]
