"""All shards of an output: claimed one by one, prepared ahead in threads, encoded here, written behind in a thread."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from oneflow_dist.bars import bar
from oneflow_dist.data.index import file_sha256
from oneflow_dist.files import Claim, claim
from oneflow_dist.precompute.encoder import Batcher
from oneflow_dist.precompute.manifest import read_report, write_final_files
from oneflow_dist.precompute.prepare import Picture, Preparation, PreparedSample
from oneflow_dist.precompute.settings import Tools, keep_settings, world
from oneflow_dist.precompute.shard_work import Outcome, ShardWork, prepare, report_path
from oneflow_dist.precompute.source import RawSample, open_raw

T = TypeVar("T")
POLL_SECONDS = 0.5  # between two looks at shards that others work on
BATCHES_AHEAD = 3  # that are prepared before they are needed, and that may wait to be written


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What one process did; a line of JSON."""

    images: int
    samples: int
    quarantined: int
    shards: int
    unread: dict[str, int]  # files of the raw shards, by kind, that are neither picture nor text
    seconds: float  # at work, from the first claim to the last commit
    images_per_second: float
    encoder_images_per_second: float  # inside the networks alone
    overhead: float  # time beside the networks, as a part of theirs

    def describe(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Precompute:
    """The work of one process on an output folder, beside any number of others."""

    def __init__(self, tools: Tools, shards: list[Path], folder: Path, max_bad: float, decode_threads: int):
        self.tools = tools
        self.shards = shards
        self.folder = folder
        self.max_bad = max_bad
        self.decode_threads = decode_threads
        self.encoder = tools.encoder()
        self.num_shards = self.num_samples = self.num_bad = 0  # of committed shards
        self.unread = Counter[str]()
        self.seconds = 0.0  # at work, without the wait for others
        self._open: list[ShardWork] = []

    def run(self) -> Summary:
        """Bring the output to completion: what others leave undone is taken over.

        Raises:
            ValueError: the output was begun with other settings or sources; too many samples of a shard are bad.
        """
        keep_settings(self.folder, self.tools.settings())
        todo = self._incomplete()
        for shard in set(self.shards) - set(todo):
            _check_source(shard, self.folder / shard.name)
        with Progress(todo) as progress:
            while todo:
                before, start = self.num_shards, time.perf_counter()
                self._encode_free(todo, progress)
                self.seconds += time.perf_counter() - start
                todo = self._incomplete()
                if todo and self.num_shards == before:
                    time.sleep(POLL_SECONDS)
        write_final_files(self.folder, self.shards, self.tools)
        return self._summarize()

    def _incomplete(self) -> list[Path]:
        return [shard for shard in self.shards if not (self.folder / shard.name).exists()]

    def _encode_free(self, todo: list[Path], progress: Progress) -> None:
        """Encode all shards that no other process works on."""
        batch_size = self.tools.options.batch_size
        batcher = Batcher(batch_size)
        written: deque[Future[None]] = deque()
        with ExitStack() as stack:
            stack.callback(self._abandon)
            opener, writer, pool = (stack.enter_context(_threads(n)) for n in (1, 1, self.decode_threads))
            tasks = _tasks(ahead(opener, self._claim_free(todo)), self.tools.preparation())
            for work, outcome in in_order(pool, tasks, depth=BATCHES_AHEAD * batch_size + self.decode_threads):
                for batch in _next_batches(work, outcome, batcher):
                    self.encoder.encode(batch)
                    progress.advance(work, len(batch), self.num_bad + work.num_bad)
                if done := work.take_done():
                    written.append(writer.submit(work.write, done))
                if outcome is None:
                    written.append(writer.submit(self._finish, work))
                while written and (written[0].done() or len(written) > BATCHES_AHEAD * batch_size):
                    written.popleft().result()
            for future in written:
                future.result()

    def _claim_free(self, todo: list[Path]) -> Iterator[ShardWork]:
        for shard in todo:
            claimed = claim(self.folder / shard.name)
            if claimed is not None:
                yield self._open_work(claimed, shard)

    def _open_work(self, claimed: Claim, shard: Path) -> ShardWork:
        with ExitStack() as undo:
            undo.callback(claimed.abandon)
            raw = open_raw(shard)
            undo.callback(raw.file.close)
            header = {**self.tools.header(), "source": raw.describe()}
            dtype = self.tools.options.dtype
            work = ShardWork(claim=claimed, raw=raw, header=header, dtype=dtype, max_bad=self.max_bad)
            self._open.append(work)
            undo.pop_all()
        return work

    def _finish(self, work: ShardWork) -> None:
        work.finish()
        self._open.remove(work)
        self.num_shards += 1
        self.num_samples += work.num_written
        self.num_bad += work.num_bad
        self.unread += work.raw.unread

    def _abandon(self) -> None:
        """Let go of shards that an error has left half done."""
        while self._open:
            self._open.pop().close()

    def _summarize(self) -> Summary:
        encoder, seconds = self.encoder, self.seconds
        return Summary(
            images=encoder.num_images,
            samples=self.num_samples,
            quarantined=self.num_bad,
            shards=self.num_shards,
            unread=dict(self.unread),
            seconds=seconds,
            images_per_second=encoder.num_images / seconds if seconds else 0.0,
            encoder_images_per_second=encoder.num_images / encoder.seconds if encoder.seconds else 0.0,
            overhead=seconds / encoder.seconds - 1.0 if encoder.seconds else 0.0,
        )


class Progress:
    """A bar over the images of this process; their number is known of opened shards and estimated of the others."""

    def __init__(self, shards: list[Path]):
        rank, _, num_processes = world()
        self.num_bytes = sum(shard.stat().st_size for shard in shards) / num_processes
        self.images_of: dict[Path, int] = {}
        self.known_bytes = 0
        self.bar = bar(unit="image", smoothing=0.05, disable=rank != 0 or not shards)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, work: ShardWork, num_images: int, num_bad: int) -> None:
        """Count images that are encoded."""
        if work.raw.path not in self.images_of:
            self.images_of[work.raw.path] = sum(sample.num_images for sample in work.raw.samples)
            self.known_bytes += work.raw.num_bytes
            self.bar.total = round(sum(self.images_of.values()) * max(1.0, self.num_bytes / self.known_bytes))
        self.bar.set_postfix(bad=num_bad, refresh=False)
        self.bar.update(num_images)


def in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], depth: int) -> Iterator[T]:
    """The results of tasks that run in threads, at most `depth` ahead."""
    futures: deque[Future[T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) >= depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def ahead(pool: ThreadPoolExecutor, items: Iterator[T]) -> Iterator[T]:
    """The same items, each made while the one before is in use."""
    following = pool.submit(next, items, None)
    while (item := following.result()) is not None:
        following = pool.submit(next, items, None)
        yield item


def _tasks(works: Iterable[ShardWork], how: Preparation) -> Iterator[Callable[[], tuple[ShardWork, Outcome | None]]]:
    """One for each sample, then one that says that its shard is at its end."""
    for work in works:
        for sample in work.raw.samples:
            yield partial(_prepare, work, sample, how)
        yield partial(_end, work)


def _prepare(work: ShardWork, sample: RawSample, how: Preparation) -> tuple[ShardWork, Outcome | None]:
    return work, prepare(work.raw, sample, how)


def _end(work: ShardWork) -> tuple[ShardWork, Outcome | None]:
    return work, None


def _next_batches(work: ShardWork, outcome: Outcome | None, batcher: Batcher) -> Iterator[list[Picture]]:
    if outcome is None:
        yield from batcher.flush()
        return
    work.queue(outcome)
    if isinstance(outcome, PreparedSample):
        for picture in outcome.pictures:
            yield from batcher.add(picture)


def _check_source(shard: Path, output: Path) -> None:
    """Compare a raw shard with the one that a complete shard was made of; with its sha256 only where it is younger."""
    was, report, now = read_report(output)["source"], report_path(output), shard.stat()
    is_same = now.st_size == was["bytes"]
    if is_same and now.st_mtime_ns > report.stat().st_mtime_ns:
        with shard.open("rb") as file:
            is_same = file_sha256(file) == was["sha256"]
        if is_same:
            report.touch()  # so that this is found out once
    if not is_same:
        raise ValueError(
            f"{shard}: not the shard any more that {output} was made of; delete {output} and run this again to encode "
            "it again, or use another output folder for other data"
        )


@contextmanager
def _threads(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that after an error do nothing more."""
    pool = ThreadPoolExecutor(num_threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
