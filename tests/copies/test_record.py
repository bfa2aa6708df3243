from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.copies.record import CHUNK, RECORD, Measure, Record, find_records, intact_files, measure, read_record


def write_copy(copy: Path, **files: bytes) -> Record:
    """A copy that is whole on this node."""
    copy.mkdir(parents=True)
    for name, content in files.items():
        (copy / name).write_bytes(content)
    record = Record(step=7, save="a", after=3, files={name: measure(copy / name) for name in files})
    (copy / RECORD).write_text(record.to_text())
    return record


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record(step=7, save="a5", after=3, files={"__0_0.distcp": Measure(3, 5), ".metadata": Measure(0, 0)})
    assert read_record(record.to_text()) == record


def test_a_record_is_found_in_a_folder_with_its_name_alone(tmp_path: Path) -> None:
    record = write_copy(tmp_path / "step-00000007", weights=b"abc")
    write_copy(tmp_path / "step-00000014.incomplete", weights=b"abc")
    (tmp_path / "step-00000021").mkdir()
    assert find_records(tmp_path) == {record.to_text(): record}
    assert find_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("harm", [lambda text: text[:-5], lambda text: text.replace("step", "stop"), lambda _: "[1]"])
def test_a_damaged_record_is_none(harm: Callable[[str], str], tmp_path: Path) -> None:
    record = write_copy(tmp_path / "step-00000007", weights=b"abc")
    (tmp_path / "step-00000007" / RECORD).write_text(harm(record.to_text()))
    assert find_records(tmp_path) == {}


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("harm", [change_a_byte, cut_off, Path.unlink])
def test_files_that_are_not_as_they_were_written_are_left_out(harm: Callable[[Path], None], tmp_path: Path) -> None:
    record = write_copy(tmp_path / "copy", a=bytes(CHUNK + 1), b=b"weights")
    assert intact_files(tmp_path / "copy", record, slice(None)) == ["a", "b"]
    harm(tmp_path / "copy" / "a")
    assert intact_files(tmp_path / "copy", record, slice(None)) == ["b"]


def test_the_ranks_of_a_node_look_at_each_of_its_files_once(tmp_path: Path) -> None:
    record = write_copy(tmp_path / "copy", a=b"1", b=b"2", c=b"3")
    shares = [intact_files(tmp_path / "copy", record, slice(rank, None, 2)) for rank in (0, 1)]
    assert shares == [["a", "c"], ["b"]]
