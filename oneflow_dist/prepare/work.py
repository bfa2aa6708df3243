"""The part of the work that takes long: items are read and prepared in processes, so many at a time, each time once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.bars import bar
from oneflow_dist.files import write_whole
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.items import Item
from oneflow_dist.prepare.samples import Picture, Preparation, Sample, read_sample
from oneflow_dist.signals import ignore_stop_signals

FOLDER = "work"  # in the output, as long as it is not complete
PART_ITEMS = 128  # that are prepared together: what is lost when the work is killed


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a source's items, and the files of what was made of it."""

    folder: Path
    number: int
    first: int  # item
    end: int

    @property
    def records(self) -> Path:
        """Samples and problems; where it is, the part is complete."""
        return self.folder / f"part-{self.number:06d}.json"

    @property
    def pngs(self) -> Path:
        """All pictures of the samples, one behind the other."""
        return self.folder / f"part-{self.number:06d}.pngs"

    def read_png(self, picture: Picture) -> bytes:
        """The content of a picture."""
        with self.pngs.open("rb") as file:
            file.seek(picture.offset)
            return file.read(picture.length)

    def read(self) -> tuple[list[Sample], list[dict[str, str]]]:
        """Samples and problems."""
        read = json.loads(self.records.read_bytes())
        return [read_sample(record) for record in read["samples"]], read["problems"]


def list_parts(folder: Path, num_items: int) -> list[Part]:
    """The parts of the work on so many items."""
    starts = range(0, num_items, PART_ITEMS)
    return [
        Part(folder / FOLDER, number, first, min(num_items, first + PART_ITEMS)) for number, first in enumerate(starts)
    ]


def prepare_parts(parts: Sequence[Part], items: Sequence[Item], policy: CropPolicy, num_workers: int) -> None:
    """Prepare all parts that are not complete; in this process alone where `num_workers` is 1.

    Raises:
        ValueError: a worker has died.
        OSError: something cannot be written.
    """
    if not parts:
        return
    parts[0].folder.mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if not part.records.exists()]
    with bar(total=len(items), unit="item", desc="reading", disable=not todo) as shown:
        shown.update(len(items) - sum(part.end - part.first for part in todo))
        for part in _prepare_all(todo, items, policy, num_workers):
            shown.update(part.end - part.first)


def remove_parts(folder: Path) -> None:
    """Remove what nobody needs once the output is complete."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def prepare_part(part: Part, items: Sequence[Item], policy: CropPolicy) -> Part:
    """Prepare the items of a part and write its files."""
    preparation = Preparation(policy)
    for number, item in enumerate(items, start=part.first):
        preparation.add(number, item)
    write_whole(part.pngs, bytes(preparation.pngs))
    records = {"samples": preparation.samples, "problems": preparation.problems}
    write_whole(part.records, json.dumps(records).encode())
    return part


def _prepare_all(todo: Sequence[Part], items: Sequence[Item], policy: CropPolicy, num_workers: int) -> Iterator[Part]:
    """The parts in the order in which they are done."""
    if num_workers == 1 or len(todo) < 2:
        for part in todo:
            yield prepare_part(part, items[part.first : part.end], policy)
        return
    context = multiprocessing.get_context("forkserver")  # of a process without threads, which those of tables have
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        waiting: set[Future[Part]] = set()
        try:
            for part in todo:
                waiting.add(pool.submit(prepare_part, part, list(items[part.first : part.end]), policy))
                if len(waiting) > 2 * num_workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in waiting)
        except BrokenProcessPool as error:
            raise ValueError(
                f"{todo[0].folder.parent}: a process that reads pictures has died; is memory short? the same command "
                "with --workers 1 goes on where this one ended"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: leave signals to the program that it works for, and end when that does, however it does."""
    ignore_stop_signals()
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)
