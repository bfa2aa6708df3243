from __future__ import annotations

import tarfile
import tempfile
from typing import BinaryIO

from oneflow_dist.data.index import file_sha256
from oneflow_dist.data.tar import scan_tar
from oneflow_dist.precompute.writer import TarWriter

LONG = "folder/" + 30 * "långt namn "


def write() -> tuple[TarWriter, BinaryIO]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    writer = TarWriter(file, {"dtype": "float16", "name": "ü"})
    writer.add("000", "txt", b"text")
    writer.add(LONG, "0.npy", bytes(1000))
    writer.add("000", "json", b"")
    writer.close()
    return writer, file


def test_a_scan_finds_what_the_writer_says_it_wrote() -> None:
    writer, file = write()
    with file:
        assert scan_tar(file, file.seek(0, 2)) == writer.contents
    assert not writer.contents.faults
    assert writer.contents.header == {"dtype": "float16", "name": "ü"}
    assert [(member.key, member.extension) for member in writer.contents.members] == [
        ("000", "txt"),
        (LONG, "0.npy"),
        ("000", "json"),
    ]


def test_members_have_no_time_and_no_owner() -> None:
    _, file = write()
    file.seek(0)
    with file, tarfile.open(fileobj=file) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


def test_the_same_content_gives_the_same_bytes() -> None:
    _, one = write()
    _, other = write()
    with one, other:
        assert file_sha256(one) == file_sha256(other)
