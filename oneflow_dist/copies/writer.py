"""Copies of a run's state in the memory of its nodes, made while it goes on."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from oneflow_dist.checkpoint import bytes_to_write, host_stager, run_tensors, tokenizer_file
from oneflow_dist.config import Config
from oneflow_dist.copies.place import ID_FILE, Place, bytes_in, find_place, lacking_room, room_in
from oneflow_dist.copies.record import CHUNK, RECORD, Record, measure_all
from oneflow_dist.files import naming, write_whole
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.progress import INCOMPLETE, Progress, complete_steps, describe, folder_beside
from oneflow_dist.runtime import GLOO, gather_objects, log


class CopyWriter:
    """Copies a run every `checkpoint.memory_every_steps`; a run that leaves it as a context and is well deletes them.

    A copy is a checkpoint whose files lie on the node of the rank that wrote each, and on the next node. One has its
    name on every node before the one before it is deleted on any.
    """

    def __init__(self, config: Config, model: nn.Module, optimizer: AdamW, ema: MovingAverage):
        """All ranks call.

        Raises:
            ValueError: a node has no room for two copies.
        """
        self.config, self.every_steps = config, config.checkpoint.memory_every_steps
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.under_way: futures.Future[None] | None = None
        if self.every_steps:
            self.place = find_place(config)
            self.group = dist.new_group(backend=GLOO)  # of the thread: its messages must not mix with those of steps
            self.stager, self.thread = host_stager(), futures.ThreadPoolExecutor(max_workers=1)
            self._check_room()

    def is_due(self, step: int) -> bool:
        """Whether the state after this step is to be copied; what ends is saved on the disk."""
        return self.every_steps > 0 and step % self.every_steps == 0 and step < self.config.train.steps

    def save(self, progress: Progress) -> None:
        """Copy the state as it is at this call, in the background, once the copy before is whole.

        Where a node has no room any more, a line says so and the copy is left out.

        Raises:
            OSError, CheckpointException: the copy before could not be written.
        """
        self.wait()
        if self.place.local_rank == 0:
            for left_over in self.place.folder.glob(f"*{INCOMPLETE}"):
                shutil.rmtree(left_over)
        state = run_tensors(self.model, self.optimizer, self.ema)
        newest = max(complete_steps(self.config.run.folder), default=0) if self.place.rank == 0 else 0
        mine = (progress.lanes, bytes_to_write(state), room_in(self.place.folder), secrets.token_hex(8), newest)
        lanes, needed, room, saves, after = (list(values) for values in zip(*gather_objects(mine), strict=True))
        lacking = lacking_room(self.place, self.config.checkpoint.memory_folder, needed, room, copies=1)
        if lacking:
            log(f"step {progress.step} is not copied: {lacking}; make room there")
            return
        staged = self.stager.stage(state)
        assert isinstance(staged, dict), "the stager is asked to copy before it returns"
        progress = dataclasses.replace(progress, lanes={key: lane for part in lanes for key, lane in part.items()})
        record = Record(step=progress.step, save=saves[0], after=after[0], files={})
        self.under_way = self.thread.submit(self._write, staged, progress, record)

    def wait(self) -> None:
        """Until no copy is under way."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> CopyWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None and self.every_steps:  # all is on the disk; a run that fails leaves its copies
            self.wait()
            if self.place.local_rank == 0:
                shutil.rmtree(self.place.folder, ignore_errors=True)
            if self.place.rank == 0:
                Path(self.config.run.folder, ID_FILE).unlink()

    def _check_room(self) -> None:
        needed = bytes_to_write(run_tensors(self.model, self.optimizer, self.ema))
        ranks = gather_objects((needed, room_in(self.place.folder) + bytes_in(self.place.folder)))
        needs, rooms = (list(values) for values in zip(*ranks, strict=True))
        lacking = lacking_room(self.place, self.config.checkpoint.memory_folder, needs, rooms, copies=2)
        if lacking:
            raise ValueError(
                f"checkpoint.memory_folder: {lacking}; make room (docker run --shm-size, mount -o remount,size=), "
                "delete what dead runs have left there, name another folder, or set checkpoint.memory_every_steps = 0"
            )

    def _write(self, staged: dict[str, Any], progress: Progress, record: Record) -> None:
        """In the thread, on all ranks; the record's files are not known yet."""
        final, place = self.place.copy_of(record.step), self.place
        beside = folder_beside(final)
        place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # weights are not for everybody on this machine
        beside.mkdir(exist_ok=True)
        files = dcp.FileSystemWriter(beside, sync_files=False, per_thread_copy_ahead=0)
        dcp.save(staged, storage_writer=files, process_group=self.group)
        own = measure_all(beside, [part_of(place.rank)])
        if place.partner != place.rank:
            exchange(beside, place, self.group)
        small = self._describe(beside, progress)
        parts = gather_objects(own, self.group)  # all ranks, partners too, have what they keep
        if place.local_rank == 0:
            for name, content in small.items():
                write_whole(beside / name, content)
            tables = [*parts, measure_all(beside, small)]
            record = dataclasses.replace(record, files={name: of for table in tables for name, of in table.items()})
            write_whole(beside / RECORD, record.to_text().encode())
            shutil.rmtree(final, ignore_errors=True)  # of an earlier start
            beside.rename(final)
        dist.barrier(group=self.group)
        if place.local_rank == 0:
            for older in place.folder.iterdir():
                if older != final:
                    shutil.rmtree(older)

    def _describe(self, beside: Path, progress: Progress) -> dict[str, bytes]:
        """The small files of a checkpoint, by name: rank 0 writes them, all nodes have them."""
        small: list[dict[str, bytes]] = [{}]
        if self.place.rank == 0:
            describe(beside, self.config, progress, tokenizer_file(self.config))
            small = [{path.name: path.read_bytes() for path in beside.iterdir() if path.suffix != PART_SUFFIX}]
        dist.broadcast_object_list(small, src=0, group=self.group)
        return small[0]


PART_SUFFIX = ".distcp"  # of DCP's files of tensors


def part_of(rank: int) -> str:
    """The file that DCP writes for a rank."""
    return f"__{rank}_0{PART_SUFFIX}"


def exchange(folder: Path, place: Place, group: dist.ProcessGroup) -> None:
    """Send this rank's file to its partner, while that of the rank whose partner it is comes into the folder.

    A rank that had nothing to write has no file, and leaves none.
    """
    mine, theirs = folder / part_of(place.rank), folder / part_of(place.source)
    mine.touch()
    lengths = torch.tensor([mine.stat().st_size, 0])
    _wait([dist.isend(lengths[:1], place.partner, group), dist.irecv(lengths[1:], place.source, group)])
    out, into = torch.empty(2, CHUNK, dtype=torch.uint8)
    to_send, to_come = lengths.tolist()
    with mine.open("rb") as sent, theirs.open("wb") as come:
        while to_send or to_come:
            sending, coming = min(to_send, CHUNK), min(to_come, CHUNK)
            sent.readinto(out[:sending].numpy())
            works = [dist.isend(out[:sending], place.partner, group)] if sending else []
            works += [dist.irecv(into[:coming], place.source, group)] if coming else []
            _wait(works)
            with naming(theirs):
                come.write(into[:coming].numpy())
            to_send, to_come = to_send - sending, to_come - coming
    for path in (mine, theirs):
        if path.stat().st_size == 0:
            path.unlink()


def _wait(works: list[Any]) -> None:
    for work in works:
        work.wait()
