"""Processes that make packs ahead of their rank, and what is said when one of them dies."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from oneflow_dist.signals import STOP_SIGNALS, ignore_stop_signals

AHEAD = 2  # items of each worker that wait to be taken
ALIGNMENT = 64  # bytes, of every tensor in the memory that a pack travels in
END_SECONDS = 2.0  # for killed workers to be gone; one that waits for a dead disk server may never be
NAME_BYTES = 1024  # of what a worker reads, for the message about its death

Note = Callable[[str], None]  # says what will be read next
Stream = Callable[[Note], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class _Worker:
    pid: int
    connection: socket.socket  # each message is whole, or was never sent; at its end is the worker's
    reads: mmap.mmap


class Workers:
    """An endless iterator: of several streams one item each in turn, each stream made by a forked process.

    Tensors come in anonymous memory, not in /dev/shm, which is 64 MB in a container. Workers leave the signals that
    stop a run to their rank, and end with it, however it ends, or with this object.
    """

    def __init__(self, streams: Sequence[Stream]):
        self._workers = [_start(stream) for stream in streams]
        self._turn = 0
        self.close = weakref.finalize(self, _end, os.getpid(), self._workers)

    def __iter__(self) -> Workers:
        return self

    def __next__(self) -> Any:
        """The next item.

        Raises:
            ValueError: the worker whose turn it is has died.
        """
        number = self._turn
        worker = self._workers[number]
        self._turn = (number + 1) % len(self._workers)
        try:
            item = _receive(worker.connection)
        except (EOFError, ConnectionError) as error:
            raise ValueError(_describe_death(number, worker)) from error
        with suppress(OSError):  # one that has ended, perhaps after an error that this is, is found at its next turn
            worker.connection.send(b"+")
        return item


def _start(stream: Stream) -> _Worker:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reads = mmap.mmap(-1, NAME_BYTES)
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the worker ignores them
    pid = os.fork()
    if pid == 0:
        _work(stream, theirs, reads)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    for _ in range(AHEAD):
        ours.send(b"+")
    return _Worker(pid, ours, reads)


def _end(owner: int, workers: list[_Worker]) -> None:
    """Kill them: they have nothing to lose, and may be stuck in a disk that does not answer."""
    if os.getpid() != owner:  # a worker has a copy of this object
        return
    for worker in workers:
        worker.connection.close()
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    for worker in workers:
        while os.waitpid(worker.pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)
    workers.clear()


def _work(stream: Stream, connection: socket.socket, reads: mmap.mmap) -> None:
    """All that a worker does; it never returns."""

    def note(name: str) -> None:
        content = name.encode(errors="replace")[: NAME_BYTES - 1]
        reads[: len(content) + 1] = content + b"\0"

    code = 0
    try:
        ignore_stop_signals()
        torch.set_num_threads(1)
        items = stream(note)
        while connection.recv(1) and (item := next(items, None)) is not None:  # it ends after an error
            _send(connection, item)
    except BaseException:  # noqa: BLE001 - the process ends here, and nothing above it is its own
        code = 1
        traceback.print_exc()
    os._exit(code)


class _Pickler(pickle.Pickler):
    """Hands the memory of tensors over as numpy does that of arrays, without a copy into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _send(connection: socket.socket, item: Any) -> None:
    """The pickle, then every tensor, in a file of memory; the message says where they lie in it."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(item)
    places, end = [], 0
    with os.fdopen(os.memfd_create("packs"), "wb", buffering=0) as memory:
        for part in (head.getbuffer(), *(buffer.raw() for buffer in buffers)):
            memory.seek(end)
            memory.write(part)
            places.append((end, end + len(part)))
            end += -(-len(part) // ALIGNMENT) * ALIGNMENT
        socket.send_fds(connection, [pickle.dumps(places)], [memory.fileno()])


def _receive(connection: socket.socket) -> Any:
    message, files, *_ = socket.recv_fds(connection, 1 << 16, 1)
    if not message:
        raise EOFError
    memory = memoryview(mmap.mmap(files[0], 0))
    os.close(files[0])
    head, *buffers = (memory[start:end] for start, end in pickle.loads(message))
    return pickle.loads(head, buffers=buffers)


def _describe_death(number: int, worker: _Worker) -> str:
    ended = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # `_end` takes it from the list of processes
    assert ended is not None, "its end of the connection is closed"
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    name = worker.reads[:].partition(b"\0")[0].decode(errors="replace")
    read = f", which was at {name}," if name else ""
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL), as the kernel does where memory runs out"
        advice = "ask for more memory, or lower data.workers, data.window_samples or data.cached_samples"
    elif code < 0:
        how = f"died of {signal.Signals(-code).name}"
        advice = "check that file and its disk (oneflow index SHARDS --check)"
    else:
        how, advice = f"ended with code {code}", "the error above is its own"
    return f"data worker {number}{read} {how}; {advice}; run the same command to go on from the last checkpoint"
