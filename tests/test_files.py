from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.files import claim, describe_os_error, free_bytes, naming, write_whole
from tests import messages

FORK = multiprocessing.get_context("fork")


def start(function: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A forked process and what it says; every function here says one thing when it is ready."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def hear(connection: Connection) -> Any:
    assert connection.poll(30.0), "nothing was said"
    return connection.recv()


def hold(say: Connection, path: Path) -> None:
    """Claim, write a part, and wait to be told to commit."""
    with claim(path) or pytest.fail("not free") as claimed:
        claimed.file.write(b"half of it")
        claimed.file.flush()
        say.send("held")
        say.recv()
        claimed.commit()
        say.send("committed")


def wait_for(say: Connection, path: Path, content: bytes) -> None:
    """Claim as soon as it can be had; say whether it was."""
    say.send("ready")
    claimed = claim(path, wait=True)
    if claimed is not None:
        with claimed:
            claimed.file.write(content)
            claimed.commit()
    say.send(claimed is not None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    with claim(tmp_path / "a") or pytest.fail("not free") as claimed:
        claimed.file.write(b"content")
        assert names(tmp_path) == ["a.partial"]
        claimed.commit()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"content"


@pytest.mark.parametrize("wait", [False, True])
def test_what_is_there_cannot_be_claimed(tmp_path: Path, wait: bool) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert claim(tmp_path / "a", wait=wait) is None
    assert names(tmp_path) == ["a"]


def test_a_file_that_is_not_done_is_replaced_at_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with claim(path, is_done=lambda path: path.read_bytes() == b"new") or pytest.fail("done") as claimed:
        claimed.file.write(b"new")
        assert path.read_bytes() == b"old"
        claimed.commit()
    assert path.read_bytes() == b"new"
    assert claim(path, is_done=lambda path: path.read_bytes() == b"new") is None


def test_one_of_two_processes_gets_a_claim(tmp_path: Path) -> None:
    process, holder = start(hold, tmp_path / "a")
    assert hear(holder) == "held"
    assert claim(tmp_path / "a") is None
    holder.send("go on")
    assert hear(holder) == "committed"
    assert claim(tmp_path / "a") is None
    process.join()
    assert names(tmp_path) == ["a"]


def test_a_claim_that_is_given_up_is_free_and_what_was_written_is_gone(tmp_path: Path) -> None:
    with claim(tmp_path / "a") or pytest.fail("not free") as claimed:
        claimed.file.write(b"half of it")
    assert not (tmp_path / "a").exists()
    with claim(tmp_path / "a") or pytest.fail("not free") as claimed:
        claimed.commit()
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.parametrize("wait", [False, True])
def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path, wait: bool) -> None:
    process, holder = start(hold, tmp_path / "a")
    assert hear(holder) == "held"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "a.partial").read_bytes() == b"half of it"
    with claim(tmp_path / "a", wait=wait) or pytest.fail("not free") as claimed:
        claimed.file.write(b"all")
        claimed.commit()
    assert (tmp_path / "a").read_bytes() == b"all"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("is_killed", [False, True])
def test_one_who_waits_gets_the_claim_of_a_dead_process_and_not_that_of_one_who_commits(
    tmp_path: Path, is_killed: bool
) -> None:
    first, holder = start(hold, tmp_path / "a")
    assert hear(holder) == "held"
    second, waiting = start(wait_for, tmp_path / "a", b"second")
    assert hear(waiting) == "ready"
    assert not waiting.poll(0.2)
    if is_killed:
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
    else:
        holder.send("go on")
    assert hear(waiting) == is_killed
    first.join()
    second.join()
    assert (tmp_path / "a").read_bytes() == (b"second" if is_killed else b"half of it")
    assert names(tmp_path) == ["a"]


def race(say: Connection, path: Path, wait: bool, begin: float) -> None:
    """All at one instant: claim, and if it is had, commit at once."""
    time.sleep(max(0.0, begin - time.monotonic()))
    claimed = claim(path, wait)
    if claimed is not None:
        with claimed:
            claimed.file.write(b"content")
            claimed.commit()
    say.send(claimed is not None)


@pytest.mark.parametrize("wait", [False, True])
def test_of_many_that_claim_at_once_one_writes_and_nothing_is_left_over(tmp_path: Path, wait: bool) -> None:
    """A commit between another's look and its lock must not give it the claim again."""
    for attempt in range(10):
        path = tmp_path / str(attempt)
        begin = time.monotonic() + 0.03
        racers = [start(race, path, wait, begin) for _ in range(6)]
        assert sum(hear(said) for _, said in racers) == 1
        for process, _ in racers:
            process.join()
        assert path.read_bytes() == b"content"
    assert names(tmp_path) == sorted(map(str, range(10)))


def test_a_commit_just_before_the_second_claimer_looks_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instant that a race seldom hits: the file appears after the look and before the lock."""
    path = tmp_path / "a"
    first = claim(path) or pytest.fail("not free")
    looks = []

    def is_done(path: Path) -> bool:
        looks.append(path.exists())
        if len(looks) == 1:
            first.file.write(b"content")
            first.commit()
            first.file.close()
        return looks[-1]

    assert claim(path, is_done=is_done) is None
    assert looks == [False, True, True]
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == b"content"


def test_write_whole_writes_and_replaces(tmp_path: Path) -> None:
    for content in (b"a long content", b"short", b""):
        write_whole(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
        assert names(tmp_path) == ["a"]


def test_what_a_killed_writer_left_is_no_part_of_the_next_file(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"left behind, and longer")
    write_whole(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert names(tmp_path) == ["a"]


def write_often(say: Connection, path: Path, content: bytes) -> None:
    for _ in range(40):
        write_whole(path, content)
    say.send("done")


def test_a_reader_sees_one_of_the_contents_whole_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {bytes([number]) * size for number, size in ((1, 300_000), (2, 7), (3, 70_000))}
    write_whole(path, min(contents))
    writers = [start(write_often, path, content) for content in contents]
    seen = set[bytes]()
    while not all(said.poll() for _, said in writers):
        seen.add(path.read_bytes())
        if not any(process.is_alive() for process, _ in writers):
            break
    for process, said in writers:
        assert hear(said) == "done"
        process.join()
    assert seen <= contents
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["a"]


def test_a_write_that_fails_names_its_file_and_what_is_left_on_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(OSError) as caught, naming(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert messages.names(describe_os_error(caught.value), path, "No space left on device", tmp_path, "MiB")


def test_a_file_that_an_error_names_itself_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, naming(tmp_path / "log"):
        (tmp_path / "nowhere").read_bytes()
    assert describe_os_error(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/nowhere'"


def test_a_disk_that_cannot_be_written_to_is_named_with_what_to_do() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "/archive/run")
    assert messages.names(describe_os_error(error), "/archive/run", "Read-only file system")


def test_what_is_free_is_asked_of_the_nearest_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    asked: list[Path] = []
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(9, 4, 5))
    paths = (tmp_path / "run/not/made/yet", tmp_path / "run", Path("run/not"), Path("nothing"))
    assert [free_bytes(path) for path in paths] == [5] * 4
    assert asked == [tmp_path / "run"] * 3 + [tmp_path]
