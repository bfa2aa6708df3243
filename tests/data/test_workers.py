from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.data.workers import Note, Workers
from tests.launching import TIMEOUT
from tests.processes import children, is_alive, wait_until


def count(first: int, step: int, note: Note) -> Iterator[int]:
    """Items of one stream, by number."""
    while True:
        note(f"sample {first}")
        yield first
        first += step


def test_streams_come_in_turn_each_in_its_order() -> None:
    workers = Workers([functools.partial(count, first, 3) for first in range(3)])
    assert [next(workers) for _ in range(10)] == list(range(10))


def tensors(note: Note) -> Iterator[Any]:
    while True:
        yield {"x": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0, 4), "n": (torch.tensor(7), "text")}


def test_tensors_arrive_whole_and_may_be_written_to() -> None:
    workers = Workers([tensors])
    one, other = next(workers), next(workers)
    assert torch.equal(one["x"], torch.arange(6.0).reshape(2, 3))
    assert one["empty"].shape == (0, 4)
    assert (one["n"][0].item(), one["n"][1]) == (7, "text")
    one["x"] += 1.0
    assert torch.equal(other["x"], torch.arange(6.0).reshape(2, 3))  # memory of its own
    assert one["x"].data_ptr() % 64 == 0


def test_nothing_is_left_in_shared_memory_and_no_file_stays_open() -> None:
    gc.collect()
    files = names_in("/dev/shm"), len(names_in("/proc/self/fd"))
    workers = Workers([tensors, tensors])
    for _ in range(20):
        next(workers)
    assert names_in("/dev/shm") == files[0]
    workers.close()
    gc.collect()
    assert len(names_in("/proc/self/fd")) == files[1]


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def started(workers_of: list[Any]) -> tuple[Workers, list[int]]:
    before = children(os.getpid())
    workers = Workers(workers_of)
    return workers, [pid for pid in children(os.getpid()) if pid not in before]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was killed (SIGKILL), as the kernel does where memory runs out; ask for more memory"),
        (signal.SIGBUS, "died of SIGBUS; check that file and its disk"),
    ],
)
def test_a_worker_that_dies_is_named_with_what_it_read_at_once(number: signal.Signals, said: str) -> None:
    workers, pids = started([functools.partial(count, first, 2) for first in range(2)])
    assert [next(workers), next(workers)] == [0, 1]
    os.kill(pids[1], number)
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        list(itertools.islice(workers, 10))
    assert time.monotonic() - start < TIMEOUT / 10
    assert str(error.value).startswith("data worker 1, which was at sample ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def fail(note: Note) -> Iterator[int]:
    yield 1
    raise KeyError("a mistake of ours")


def test_a_mistake_in_a_worker_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    workers = Workers([fail])
    assert next(workers) == 1
    with pytest.raises(ValueError, match="data worker 0 ended with code 1; the error above is its own"):
        next(workers)
    assert "KeyError: 'a mistake of ours'" in capfd.readouterr().err


def ends(note: Note) -> Iterator[Any]:
    yield 1
    yield ValueError("a bad sample")


def test_what_a_worker_has_sent_before_it_ended_arrives_however_late() -> None:
    workers, (pid,) = started([ends])
    assert next(workers) == 1
    wait_until(lambda: not is_alive(pid), "its end")
    assert str(next(workers)) == "a bad sample"


def stuck(note: Note) -> Iterator[int]:
    time.sleep(1000)
    yield 0


def test_workers_end_with_their_owner_even_where_they_are_stuck() -> None:
    workers, pids = started([stuck, stuck])
    assert len(pids) == 2
    del workers
    gc.collect()
    assert not set(pids) & set(children(os.getpid()))


def test_signals_that_stop_a_run_do_not_end_a_worker() -> None:
    workers, pids = started([functools.partial(count, 0, 1)])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pids[0], number)
    assert [next(workers) for _ in range(5)] == list(range(5))
