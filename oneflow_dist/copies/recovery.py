"""What a run goes on from: the newest checkpoint on the disk, or a newer copy in memory, which then is put there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from oneflow_dist.checkpoint import check_room
from oneflow_dist.config import Config
from oneflow_dist.copies.place import Place, find_place
from oneflow_dist.copies.record import CHUNK, Record, find_records, intact_files, read_record
from oneflow_dist.files import free_bytes
from oneflow_dist.metrics import open_alone
from oneflow_dist.progress import checkpoint_folder, clear_place, delete_old, folder_beside, give_name, read_progress
from oneflow_dist.runtime import gather_objects, is_main, log

Holders = dict[str, dict[str, int]]  # of a record's text: the rank that has each file, as it was written


def recover(config: Config, latest: Path | None) -> Path | None:
    """`latest`, or a newer copy of this run that lies whole on the nodes together, now a checkpoint on the disk.

    All ranks call, of any number of nodes, those that wrote it or others.

    Raises:
        OSError: no room for it on the disk.
        ValueError: another process is running in the folder.
    """
    if not config.checkpoint.memory_every_steps:
        return latest
    place, newest = find_place(config), read_progress(latest).step if latest is not None else 0
    share = slice(place.local_rank, None, place.ranks_per_node)  # the node's ranks divide the reading
    records = find_records(place.folder)
    mine = {text: intact_files(place.copy_of(record.step), record, share) for text, record in records.items()}
    holders = find_holders(gather_objects(mine))
    for text, record in sorted(((text, read_record(text)) for text in holders), key=lambda pair: -pair[1].step):
        reason = why_not(record, holders[text], newest)
        if not reason:
            return _put_on_disk(config, place, record, holders[text])
        log(f"the copy of step {record.step} in memory is not taken: {reason}")
    if place.had_copies and not holders:
        log(f"no copy of this run in {config.checkpoint.memory_folder} of {', '.join(dict.fromkeys(place.nodes))}")
    return latest


def find_holders(by_rank: Iterable[dict[str, list[str]]]) -> Holders:
    """The first rank that has each file of each copy."""
    holders: Holders = {}
    for rank, found in enumerate(by_rank):
        for text, names in found.items():
            of_copy = holders.setdefault(text, {})
            for name in names:
                of_copy.setdefault(name, rank)
    return holders


def why_not(record: Record, holders: dict[str, int], newest: int) -> str:
    """Why a run does not go on from a copy; empty if it does.

    Args:
        newest: the step of the newest checkpoint on the disk.
    """
    if record.step <= newest:
        return f"step {newest} is on the disk"
    if record.after > newest:
        return f"it was made after step {record.after} was on the disk, which is no longer there"
    missing = sorted(record.files.keys() - holders.keys())
    if missing:
        return f"{len(missing)} of {len(record.files)} files are on no node as they were written, as {missing[0]}"
    return ""


def _put_on_disk(config: Config, place: Place, record: Record, holders: dict[str, int]) -> Path:
    """Each rank writes the files that it holds to the run's folder, where they become an ordinary checkpoint."""
    final, begin = checkpoint_folder(config.run.folder, record.step), time.monotonic()
    num_bytes = sum(file.length for file in record.files.values())
    if is_main():
        open_alone(Path(config.run.folder) / "metrics.jsonl").close()  # a living run has its folder to itself
        check_room(final, num_bytes, free_bytes(final))
        clear_place(final)
    dist.barrier()
    for name, rank in holders.items():
        if rank == place.rank:
            copy_durably(place.copy_of(record.step) / name, folder_beside(final) / name)
    dist.barrier()
    if is_main():
        give_name(final)
        delete_old(config.run.folder, config.checkpoint)
    dist.barrier()
    nodes = ", ".join(dict.fromkeys(place.nodes[rank] for rank in sorted(holders.values())))
    gib, seconds = num_bytes / 2**30, time.monotonic() - begin
    log(f"step {record.step} was in the memory of {nodes}: {gib:.3g} GiB put on the disk in {seconds:.1f} s")
    return final


def copy_durably(source: Path, target: Path) -> None:
    """So that it survives a power cut."""
    with source.open("rb") as file, target.open("wb") as written:
        shutil.copyfileobj(file, written, CHUNK)
        written.flush()
        os.fsync(written.fileno())
