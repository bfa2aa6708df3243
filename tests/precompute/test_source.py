from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from oneflow_dist.precompute.shard_work import prepare
from oneflow_dist.precompute.source import list_raw, open_raw
from tests.messages import names, naming
from tests.precompute.making import make_tools, pair, write_tar

HEAD = 512


def refusals(path: Path) -> dict[str, str]:
    raw = open_raw(path)
    raw.file.close()
    return {sample.key: sample.refusal for sample in raw.samples if sample.refusal is not None}


def damage(path: Path) -> list[str]:
    raw = open_raw(path)
    raw.file.close()
    return raw.damage


def header_offset(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def break_header(path: Path, name: str) -> int:
    content = bytearray(path.read_bytes())
    offset = header_offset(path, name)
    content[offset : offset + 100] = b"\xff" * 100
    path.write_bytes(bytes(content))
    return offset


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", [file for number in range(4) for file in pair(number)])


def test_samples_come_in_order_with_their_files(shard: Path) -> None:
    raw = open_raw(shard)
    assert [sample.key for sample in raw.samples] == ["000", "001", "002", "003"]
    assert raw.read(raw.samples[1]) == {name.partition(".")[2]: content for name, content in pair(1)}
    assert [sample.num_images for sample in raw.samples] == [1, 1, 1, 1]
    assert raw.describe()["bytes"] == shard.stat().st_size
    raw.file.close()


def test_a_sample_that_damage_robbed_of_a_file_is_refused_and_its_neighbour_is_not(shard: Path) -> None:
    offset = break_header(shard, "002.png")
    refused = refusals(shard)
    assert refused.keys() == {"002"}
    assert names(refused["002"], "picture", offset)
    (damaged,) = damage(shard)
    assert names(damaged, offset)


def test_a_tar_that_is_cut_off_keeps_its_whole_samples(shard: Path) -> None:
    at = header_offset(shard, "003.txt")
    shard.write_bytes(shard.read_bytes()[: at + HEAD + 4])
    refused = refusals(shard)
    assert refused.keys() == {"003"}
    assert names(refused["003"], "003.txt", at + HEAD + 4)
    assert damage(shard) == []


def test_files_that_cannot_be_trusted_refuse_their_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            *pair(0),
            ("../evil.txt", b"x"),
            *pair(1),
            ("001.pkl", b"x"),
            *pair(2),
            ("002.txt", b"again"),
            ("/abs.txt", b""),
        ],
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("003.png")
        link.type, link.linkname = tarfile.LNKTYPE, "000.png"
        tar.addfile(link)
        text = tarfile.TarInfo("003.txt")
        text.size = 4
        tar.addfile(text, io.BytesIO(b"text"))
    refused = refusals(path)
    named = {"../evil": "../evil.txt", "001": "pkl", "002": "002.txt", "/abs": "/abs.txt", "003": "003.png"}
    assert refused.keys() == named.keys()
    for key, part in named.items():
        assert names(refused[key], part)


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pair(0))
    content = path.read_bytes()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("b\udcff.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert content != path.read_bytes()
    refused = refusals(path)
    assert refused.keys() == {"b\\udcff"}
    assert names(refused["b\\udcff"], "b\\udcff.txt", "UTF-8")


def test_a_shard_that_is_cut_off_while_it_is_open_ends_the_run(shard: Path) -> None:
    """Its samples are not bad."""
    raw = open_raw(shard)
    with raw.file:
        with shard.open("r+b") as file:
            file.truncate(raw.samples[3].members[0].offset)
        with pytest.raises(ValueError, match=naming(shard, "003")):
            prepare(raw, raw.samples[3], make_tools().preparation())


def test_a_header_for_all_members_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of git archive"}) as tar:
        info = tarfile.TarInfo("000.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert damage(path) == []
    assert refusals(path) == {}


def test_patterns_name_shards_in_order(tmp_path: Path) -> None:
    for name in ("b-1", "b-0", "c-0"):
        (tmp_path / f"{name}.tar").touch()
    found = list_raw([f"{tmp_path}/{{c,b}}-*.tar"])
    assert [path.name for path in found] == ["c-0.tar", "b-0.tar", "b-1.tar"]


def test_shards_that_are_missing_or_share_a_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tar").touch()
    for patterns, named in (
        ([], ["shards", "'raw/*.tar'"]),
        ([f"{tmp_path}/z.tar"], ["raw", f"{tmp_path}/z.tar"]),
        (["s3://raw/a.tar"], ["s3://raw/a.tar"]),
        ([f"{tmp_path}/*/a.tar"], ["a.tar", 2]),
    ):
        with pytest.raises(ValueError, match=naming(*named)):
            list_raw(patterns)
