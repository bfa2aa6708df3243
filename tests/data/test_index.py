from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data import index as index_module
from oneflow_dist.data.index import FORMAT, ShardIndex, decode_index, index_tar, read_or_write_index
from tests.messages import Message
from tests.tars import PAIRS, write_tar

FORK = multiprocessing.get_context("fork")
OTHER = {"0001.png": b"FIRST IMAGE", "0001.txt": b"ONE", "0002.txt": b"TWO", "0002.png": b"SECOND IMAGE"}


def open_beside(path: Path) -> ShardIndex:
    return read_or_write_index(path, path.with_name(path.name + ".index"), f"pets/{path.name}")


def read(path: Path, index: ShardIndex) -> list[tuple[str, dict[str, bytes]]]:
    """All samples by the index: key and files."""
    content = path.read_bytes()
    return [
        (index.key(i), {name: content[offset : offset + size] for name, offset, size in index.members(i)})
        for i in range(len(index))
    ]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a tar is read from end to end."""
    done = []

    def count(file: Any, num_bytes: int) -> Any:
        done.append(num_bytes)
        return scan_tar(file, num_bytes)

    scan_tar = index_module.scan_tar
    monkeypatch.setattr(index_module, "scan_tar", count)
    return done


# What an index says.


def test_an_index_tells_where_the_files_of_each_sample_lie(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {**PAIRS, "a/b/käse.json": b"{}", "0001.gif": b""}, {"made": "by hand"})
    index = open_beside(path)
    assert read(path, index) == [
        ("0001", {"png": b"first image", "txt": b"one"}),
        ("0002", {"txt": b"two", "png": b"second image"}),
        ("a/b/käse", {"json": b"{}"}),
    ]
    assert index.counts == {"json": 1, "png": 2, "txt": 2}
    assert index.unread == {"gif": 1}
    assert index.header == {"made": "by hand"}
    assert index.tar_bytes == path.stat().st_size


def test_a_tar_may_hold_any_number_of_kinds(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"1.{number:050d}.png": b"" for number in range(1000)})
    content = index_tar(path, "x")
    line = content[: content.index(b"\n")]
    content = content.replace(line, line + b" " * (1 << 20))
    assert len(decode_index(content, "x").members(0)) == 1000


def test_members_of_one_sample_need_not_lie_together(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.txt": b"a", "2.txt": b"b", "1.png": b"c", "3.txt": b"d", "2.png": b"e"})
    assert read(path, open_beside(path)) == [
        ("1", {"txt": b"a", "png": b"c"}),
        ("2", {"txt": b"b", "png": b"e"}),
        ("3", {"txt": b"d"}),
    ]


@given(st.dictionaries(st.from_regex(r"[a-zé]{1,2}\.(txt|png|0\.jpg)", fullmatch=True), st.binary(max_size=600)))
def test_every_file_is_read_back_through_the_index(members: dict[str, bytes]) -> None:
    expected: dict[str, dict[str, bytes]] = {}
    for name, data in members.items():
        key, _, extension = name.partition(".")
        expected.setdefault(key, {})[extension] = data
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "x.tar", members)
        index = decode_index(index_tar(path, "x"), "x")
        assert read(path, index) == [*expected.items()]


def test_indexing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS, {"a": [1, {"b": None}]})
    assert index_tar(path, "x") == index_tar(path, "y")


# When a tar is scanned.


def test_an_index_is_written_beside_the_tar_and_used_again(tmp_path: Path, scans: list[int]) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    first = open_beside(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "x.tar.index"]
    again = open_beside(path)
    assert len(scans) == 1
    assert read(path, again) == read(path, first)


def test_the_folder_of_an_index_is_made_where_there_is_none(tmp_path: Path, scans: list[int]) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    for _ in range(2):
        read_or_write_index(path, tmp_path / "a" / "b" / "x.tar.index", "x")
    assert len(scans) == 1
    assert not (tmp_path / "x.tar.index").exists()


def test_the_index_of_a_tar_of_another_size_is_replaced(tmp_path: Path, scans: list[int]) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    open_beside(path)
    write_tar(path, {"0003.txt": b"x" * 20_000})
    os.utime(path, (0, 0))  # as after copying an old one
    assert read(path, open_beside(path)) == [("0003", {"txt": b"x" * 20_000})]
    assert len(scans) == 2


def test_the_index_of_a_younger_tar_with_other_content_is_replaced(tmp_path: Path, scans: list[int]) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    before = open_beside(path)
    write_tar(path, {"0001.txt": b"other", "0009.txt": b""})
    assert path.stat().st_size == before.tar_bytes
    os.utime(tmp_path / "x.tar.index", (0, 0))
    for _ in range(2):
        assert [key for key, _ in read(path, open_beside(path))] == ["0001", "0009"]
    assert len(scans) == 2


def test_a_younger_tar_is_scanned_again_whatever_its_edges_say(tmp_path: Path, scans: list[int]) -> None:
    members = {f"{number}.txt": bytes(100_000) for number in range(3)}
    path = write_tar(tmp_path / "x.tar", members)
    open_beside(path)
    write_tar(path, {**members, "1.txt": bytes(50_000), "3.txt": bytes(49_000)})
    os.utime(tmp_path / "x.tar.index", (0, 0))
    assert len(open_beside(path)) == 4
    assert len(scans) == 2


def test_a_tar_of_the_future_is_scanned_once_a_start(tmp_path: Path, scans: list[int]) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    os.utime(path, (time.time() + 1000, time.time() + 1000))
    for starts in (1, 2):
        assert len(open_beside(path)) == 2
        assert len(scans) == starts


def test_an_index_that_is_replaced_can_still_be_read_by_who_has_opened_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    old = open_beside(path)
    keys = [old.key(i) for i in range(len(old))]
    write_tar(path, {f"{number}.txt": b"" for number in range(100)})
    assert len(open_beside(path)) == 100
    assert [old.key(i) for i in range(len(old))] == keys


@pytest.mark.parametrize("folder", ["/proc/self/none", "{tmp}/x.tar/none"], ids=["read-only", "not a folder"])
def test_where_no_index_can_be_written_it_lives_in_memory(tmp_path: Path, scans: list[int], folder: str) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    index_path = Path(folder.format(tmp=tmp_path)) / "x.tar.index"
    index = read_or_write_index(path, index_path, "x")
    assert [key for key, _ in read(path, index)] == ["0001", "0002"]
    read_or_write_index(path, index_path, "x")
    assert len(scans) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("is_written_again", [False, True])
def test_in_a_read_only_folder_an_index_is_used_if_it_is_not_older(
    tmp_path: Path, scans: list[int], monkeypatch: pytest.MonkeyPatch, is_written_again: bool
) -> None:
    """Whoever runs this may write anywhere, so it is pretended."""
    path = write_tar(tmp_path / "x.tar", PAIRS)
    open_beside(path)
    if is_written_again:
        write_tar(path, OTHER)
        os.utime(tmp_path / "x.tar.index", (0, 0))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(index_module, "claim", refuse)
    files = dict(read(path, open_beside(path)))
    assert files["0001"]["txt"] == (b"ONE" if is_written_again else b"one")
    assert len(scans) == 1 + is_written_again


# Several processes.


def open_in_process(answers: Queue[Any], path: Path, begin: float) -> None:
    done = []
    scan_tar = index_module.scan_tar
    index_module.scan_tar = lambda *arguments: done.append(0) or scan_tar(*arguments)
    time.sleep(max(0.0, begin - time.monotonic()))
    index = open_beside(path)
    answers.put(([index.key(i) for i in range(len(index))], len(done)))


@pytest.mark.parametrize("had", ["none", "stale", "damaged"])
def test_processes_that_index_at_once_share_one_scan(tmp_path: Path, had: str) -> None:
    for attempt in range(3):
        path = write_tar(tmp_path / f"{attempt}.tar", {"old.txt": b""})
        if had == "stale":
            open_beside(path)
        elif had == "damaged":
            path.with_name(path.name + ".index").write_bytes(b"\0" * 99)
        write_tar(path, {f"{number}.txt": b"x" * 100 for number in range(50)})
        answers = FORK.Queue()
        begin = time.monotonic() + 0.05
        processes = [FORK.Process(target=open_in_process, args=(answers, path, begin)) for _ in range(4)]
        for process in processes:
            process.start()
        heard = [answers.get(timeout=30) for _ in processes]
        for process in processes:
            process.join()
        answers.close()
        assert [keys for keys, _ in heard] == [[str(number) for number in range(50)]] * 4
        assert sum(times for _, times in heard) == 1
    assert not list(tmp_path.glob("*.partial"))


# What is refused, and how it is said.


def refusal(content: bytes) -> str:
    with pytest.raises(ValueError) as error:
        decode_index(content, "data/x.tar.index")
    return Message(error.value)


def test_an_index_with_a_changed_byte_is_named(tmp_path: Path) -> None:
    """Wherever it is: in the numbers of its first line, in the offsets or in the keys."""
    content = index_tar(write_tar(tmp_path / "x.tar", PAIRS, {"x": 1}), "x")
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x01
        message = refusal(bytes(changed))
        assert message.startswith("data/x.tar.index: damaged index ("), place
        assert str(message).endswith("); delete it, it is then made again"), place


def test_an_index_cut_off_anywhere_is_named(tmp_path: Path) -> None:
    content = index_tar(write_tar(tmp_path / "x.tar", PAIRS), "x")
    for size in range(len(content)):
        assert refusal(content[:size]).startswith("data/x.tar.index: damaged index (")


def test_an_index_with_bytes_after_its_end_is_named(tmp_path: Path) -> None:
    content = index_tar(write_tar(tmp_path / "x.tar", PAIRS), "x")
    assert "damaged" in refusal(content + b"x")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"3\n", b"[]\n", b"{}\n", b"<html>404</html>\n", b'"text"\n', b"\xff\n"]
)
def test_what_is_no_index_is_named(content: bytes) -> None:
    assert refusal(content).startswith("data/x.tar.index: damaged index (")


@pytest.mark.parametrize("content", [b"", b"3\n", b"[]\n", b"{}\n", b"\xff\n", b'{"format": "oneflow index 0"}\n'])
def test_beside_a_tar_what_is_no_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    (tmp_path / "x.tar.index").write_bytes(content)
    assert len(open_beside(path)) == 2


def test_beside_a_tar_an_index_with_damaged_numbers_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    open_beside(path)
    index_path = tmp_path / "x.tar.index"
    content = bytearray(index_path.read_bytes())
    content[-20] ^= 0x01
    index_path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        open_beside(path)
    assert Message(error.value) == (
        f"{index_path}: damaged index (its checksum or format differs); delete it, it is then made again"
    )


def test_an_index_of_another_format_is_not_read(tmp_path: Path) -> None:
    content = index_tar(write_tar(tmp_path / "x.tar", PAIRS), "x")
    head = json.loads(content[: content.index(b"\n")])
    assert head["format"] == FORMAT
    assert "damaged index" in refusal(content.replace(FORMAT.encode(), b"oneflow index 9"))


@pytest.mark.parametrize(
    ("members", "cut", "message"),
    [
        (PAIRS, 1024 + 600, "x.tar, member 0001.txt: the tar is cut off inside it, at byte 1536"),
        ({"../evil.txt": b""}, 0, "x.tar, member ../evil.txt: its name leaves the archive"),
        ({"1.txt": b"", "1.TXT": b""}, 0, "x.tar, member 1.TXT: the tar holds it twice"),
        ({"1.txt": b"", "caf\udce9.txt": b""}, 0, "x.tar, member caf\\udce9.txt: its name is not UTF-8"),
        (PAIRS, 100, "x.tar: not a readable tar"),
    ],
    ids=["cut off", "evil name", "twice", "no UTF-8", "no tar"],
)
def test_a_tar_with_a_fault_has_no_index(tmp_path: Path, members: dict[str, bytes], cut: int, message: str) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    if cut:
        path.write_bytes(path.read_bytes()[: max(100, cut - cut % 512)])
    with pytest.raises(ValueError) as error:
        open_beside(path)
    assert Message(error.value) == f"pets/{message}; write this shard again"
    assert not (tmp_path / "x.tar.index").exists()


def test_an_index_is_of_the_tar_and_not_of_its_name(tmp_path: Path) -> None:
    """Data sets are moved together with their indexes."""
    path = write_tar(tmp_path / "x.tar", PAIRS)
    open_beside(path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("x.tar", "x.tar.index"):
        shutil.move(tmp_path / name, moved / name)
    assert len(open_beside(moved / "x.tar")) == 2
