from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.tar import EXTENSIONS, HEADER_KEY, Fault, Member, TarContents, describe_unread, scan_tar
from tests.tars import PAIRS, write_tar

LONG = "a/" * 60 + "x" * 150
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def scan(content: bytes) -> TarContents:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        return scan_tar(file, len(content))


def tar_of(members: dict[str, bytes] | list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT, **more: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, **more) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def files_of(content: bytes, members: list[Member]) -> dict[tuple[str, str], bytes]:
    """What a reader of the index sees: the bytes by key and extension."""
    return {(m.key, m.extension): content[m.offset : m.offset + m.size] for m in members}


def split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


PAIR_FILES = {split(name): data for name, data in PAIRS.items()}


# What is found.


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_members_are_found_in_the_order_of_the_tar(kind: int) -> None:
    content = tar_of(PAIRS, kind)
    found = scan(content)
    assert [(m.key, m.extension) for m in found.members] == [*PAIR_FILES]
    assert files_of(content, found.members) == PAIR_FILES
    assert (found.faults, found.pickles, found.header) == ([], [], {})


def test_the_key_ends_at_the_first_dot_of_the_name_and_the_extension_is_in_lower_case() -> None:
    found = scan(tar_of({"a.b/c.d/0001.0.PNG": b"", "0001.Json": b"", "./0002.txt": b""}))
    assert [(m.key, m.extension) for m in found.members] == [
        ("a.b/c.d/0001", "0.png"),
        ("0001", "json"),
        ("./0002", "txt"),
    ]


@pytest.mark.parametrize("kind", ["pax", "gnu"])
@pytest.mark.parametrize("name", [f"{LONG}.txt", "käse/東京.txt", f"{'é' * 90}.txt"], ids=["long", "umlaut", "both"])
def test_long_and_foreign_names_are_read(kind: str, name: str) -> None:
    content = tar_of({"0001.txt": b"before", name: b"within", "0002.txt": b"after"}, FORMATS[kind])
    found = scan(content)
    assert files_of(content, found.members) == {
        ("0001", "txt"): b"before",
        split(name): b"within",
        ("0002", "txt"): b"after",
    }
    assert found.faults == []


def test_what_is_not_text_picture_or_array_is_no_member() -> None:
    assert EXTENSIONS == ("txt", "json", "npy", "png", "jpg", "jpeg", "webp", "wav", "apng")
    found = scan(tar_of({"1.txt": b"", "1.exe": b"", "README": b"", "1.mp4": b"", "1.txt.gz": b"", "2.MP4": b""}))
    assert [m.extension for m in found.members] == ["txt"]
    assert (found.pickles, found.faults) == ([], [])
    assert found.unread == {"exe": 1, "": 1, "mp4": 2, "gz": 1}
    assert describe_unread(found.unread) == "2 .mp4, 1 without an extension, 1 .exe, 1 .gz"
    many = describe_unread({f"{number:03d}": 3 for number in range(100)})
    assert many.startswith("3 .000, 3 .001, ")
    assert many.endswith(" more kinds")


def test_text_whose_key_has_a_dot_is_not_read_and_counted() -> None:
    """Nothing asks for a text by a name, but documents name their pictures."""
    found = scan(tar_of({"a.v1.5.txt": b"", "b.v2.txt": b"", "a.v1.json": b"", "a.v1.5.png": b"", "a.0.npy": b""}))
    assert [m.extension for m in found.members] == ["v1.5.png", "0.npy"]
    assert found.unread == {"*.txt": 2, "*.json": 1}


def test_folders_and_hidden_files_are_not_counted_as_unread() -> None:
    assert scan(tar_of({"1.txt": b"", "a/._1.jpg": b"", ".DS_Store": b""})).unread == {}
    assert scan(tar_of_kinds(tarfile.DIRTYPE, tarfile.REGTYPE, extension="gif")).unread == {"gif": 1}


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pt", "PTH", "joblib", "0.pkl"])
def test_pickles_are_listed_and_never_members(extension: str) -> None:
    found = scan(tar_of({"1.txt": b"fine", f"1.{extension}": b"danger"}))
    assert [(m.key, m.extension) for m in found.pickles] == [("1", extension.lower())]
    assert found.unread == {extension.lower().rpartition(".")[2]: 1}
    assert [m.extension for m in found.members] == ["txt"]
    assert found.faults == []


@pytest.mark.parametrize("name", [".txt", "a/.hidden.txt", "a/._0001.jpg"])
def test_hidden_files_are_no_members(name: str) -> None:
    """As for webdataset; some systems put a ._0001.jpg beside each 0001.jpg."""
    found = scan(tar_of({"0001.txt": b"", name: b""}))
    assert [m.key for m in found.members] == ["0001"]
    assert found.faults == []


@pytest.mark.parametrize("kind", ["gnu", "ustar"])
def test_a_name_that_is_not_utf8_is_a_fault_that_can_be_printed(kind: str) -> None:
    found = scan(tar_of({"1.txt": b"", "caf\u00e9.txt": b"", "caf\u00e9.gif": b""}, FORMATS[kind], encoding="latin-1"))
    assert found.faults == [Fault("caf\\udce9.txt", "its name is not UTF-8")]
    assert [m.key for m in found.members] == ["1"]


def tar_of_kinds(*kinds: bytes, extension: str = "txt") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{number}.{extension}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()


def test_folders_and_devices_are_no_members() -> None:
    found = scan(tar_of_kinds(tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE))
    assert [m.key for m in found.members] == ["3"]
    assert found.faults == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_link_in_place_of_a_file_is_a_fault_and_the_next_member_is_found(kind: bytes) -> None:
    """The sample would lack it. What has an extension that is not read does not matter."""
    found = scan(tar_of_kinds(kind, tarfile.REGTYPE))
    assert found.faults == [Fault("0.txt", "a link, not a file")]
    assert [m.key for m in found.members] == ["1"]
    assert scan(tar_of_kinds(kind, extension="md")).faults == []


def test_tars_end_to_end_are_one_tar() -> None:
    content = tar_of({"1.txt": b"one"}) + tar_of({"2.txt": b"two"})
    found = scan(content)
    assert files_of(content, found.members) == {("1", "txt"): b"one", ("2", "txt"): b"two"}
    assert found.faults == []


def test_a_tar_of_nothing_has_no_members_and_no_fault() -> None:
    assert scan(tar_of({})) == TarContents()


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}\.(txt|png)", fullmatch=True), st.binary(max_size=1500), max_size=5))
def test_every_member_of_a_whole_tar_is_read_back(members: dict[str, bytes]) -> None:
    content = tar_of(members, tarfile.PAX_FORMAT)
    found = scan(content)
    assert files_of(content, found.members) == {split(name): data for name, data in members.items()}
    assert found.faults == []


# The header that says how a shard was made.


@pytest.mark.parametrize(
    "header",
    [{}, {"autoencoder": {"scaling_factor": 0.18215, "sha256": "ab" * 32}, "name": "käse 東京\n=", "list": [1, None]}],
    ids=["empty", "full"],
)
def test_the_header_of_a_shard_is_read_back(tmp_path: Path, header: dict[str, Any]) -> None:
    content = write_tar(tmp_path / "x.tar", PAIRS, header).read_bytes()
    found = scan(content)
    assert found.header == header
    assert files_of(content, found.members) == PAIR_FILES
    assert found.faults == []


@pytest.mark.parametrize("size", [400, 500, 512, 5000])
def test_a_header_of_any_length_leaves_no_gap(tmp_path: Path, size: int) -> None:
    found = scan(write_tar(tmp_path / "x.tar", {f"{LONG}.txt": b"", **PAIRS}, {"x": "y" * size}).read_bytes())
    assert found.header == {"x": "y" * size}
    assert len(found.members) == 5
    assert found.faults == []


def test_a_shard_without_a_good_sample_may_have_a_header(tmp_path: Path) -> None:
    found = scan(write_tar(tmp_path / "x.tar", {}, {"x": 1}).read_bytes())
    assert (found.members, found.faults) == ([], [])


@pytest.mark.parametrize("value", ['{"a": ', "3", "null"])
def test_a_header_that_is_no_table_is_a_fault(value: str) -> None:
    found = scan(tar_of(PAIRS, tarfile.PAX_FORMAT, pax_headers={HEADER_KEY: value}))
    (fault,) = found.faults
    assert fault.reason.startswith("its header ONEFLOW.header is broken (")
    assert len(found.members) == 4


# What other programs write.


def test_the_shards_of_webdataset_are_read(tmp_path: Path) -> None:
    samples = [{"__key__": f"part/{i:06d}", "txt": f"text {i}", "json": {"i": i}} for i in range(20)]
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for sample in samples:
            writer.write(sample)
    content = (tmp_path / "x.tar").read_bytes()
    found = scan(content)
    files = files_of(content, found.members)
    assert [files[sample["__key__"], "txt"].decode() for sample in samples] == [sample["txt"] for sample in samples]
    assert len(files) == 40
    assert found.faults == []


@pytest.mark.parametrize("kind", ["gnu", "posix", "ustar", "v7", "oldgnu"])
def test_what_the_tar_program_writes_is_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "samples"
    long = "y" * (180 if kind in ("gnu", "posix", "oldgnu") else 80)
    expected = {("samples/0001", "txt"): b"one", (f"samples/{long}", "txt"): b"long", ("samples/2", "png"): b"x" * 9999}
    folder.mkdir()
    for (key, extension), data in expected.items():
        (tmp_path / f"{key}.{extension}").write_bytes(data)
    (folder / "link.txt").symlink_to("0001.txt")
    subprocess.run(["tar", f"--format={kind}", "-cf", "x.tar", "samples"], cwd=tmp_path, check=True)
    content = (tmp_path / "x.tar").read_bytes()
    found = scan(content)
    assert files_of(content, found.members) == expected
    assert found.faults == [Fault("samples/link.txt", "a link, not a file")]


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_a_sparse_member_is_a_fault_and_the_next_one_is_found(tmp_path: Path, kind: str) -> None:
    """Its bytes do not lie in the tar as they are read."""
    with (tmp_path / "1.txt").open("wb") as file:
        file.write(b"start")
        file.seek(1_000_000)
        file.write(b"end")
    (tmp_path / "2.txt").write_bytes(b"two")
    command = ["tar", "--sparse", "--hole-detection=raw", f"--format={kind}", "-cf", "x.tar", "1.txt", "2.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    content = (tmp_path / "x.tar").read_bytes()
    assert len(content) < 1_000_000
    found = scan(content)
    assert files_of(content, found.members) == {("2", "txt"): b"two"}
    assert found.faults == [Fault("1.txt", "a sparse file, not stored as it is")]


# Names that lead elsewhere, and names that come twice.


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/abs.txt", "//abs.txt", "a/../b.txt", "../x.pkl"])
def test_a_name_that_leaves_the_archive_is_a_fault_and_no_member(name: str) -> None:
    found = scan(tar_of({"1.txt": b"", name: b"danger", "2.txt": b""}))
    assert [m.key for m in found.members] == ["1", "2"]
    assert found.pickles == []
    assert found.faults == [Fault(name, "its name leaves the archive")]


@pytest.mark.parametrize("second", ["1.txt", "1.TXT"])
def test_a_member_that_comes_twice_is_a_fault_and_the_first_counts(second: str) -> None:
    content = tar_of([("1.txt", b"first"), ("2.txt", b""), (second, b"second")])
    found = scan(content)
    assert files_of(content, found.members) == {("1", "txt"): b"first", ("2", "txt"): b""}
    assert found.faults == [Fault(second, "the tar holds it twice")]


# Damage. Each member is a header of 512 bytes and its content in blocks of 512.

SIZES = (100, 512, 2000, 0, 700)
DAMAGED = {f"{number}.txt": bytes([65 + number]) * size for number, size in enumerate(SIZES)}


@pytest.mark.parametrize(
    ("kind", "name"), [("pax", "plain"), ("pax", "long"), ("gnu", "plain"), ("gnu", "long"), ("ustar", "plain")]
)
def test_a_tar_cut_off_anywhere_loses_no_member_in_silence(kind: str, name: str) -> None:
    """All whole members before the cut are found, and if any is missing, that is a fault."""
    prefix = f"{LONG}-" if name == "long" else ""
    header = {"pax_headers": {HEADER_KEY: "{}"}} if kind == "pax" else {}
    content = tar_of({prefix + key: data for key, data in DAMAGED.items()}, FORMATS[kind], **header)
    whole = scan(content)
    assert (len(whole.members), whole.faults) == (len(SIZES), [])
    for cut in range(0, len(content), 256):
        found = scan(content[:cut])
        expected = [m for m in whole.members if m.offset + -(-m.size // 512) * 512 <= cut]
        assert found.members == expected, cut
        assert found.faults or len(found.members) == len(SIZES), cut


def test_a_cut_inside_a_member_names_it() -> None:
    found = scan(tar_of(DAMAGED)[:3000])
    assert found.faults == [Fault("2.txt", "the tar is cut off inside it, at byte 3000")]


@pytest.mark.parametrize("content", [b"", b"x", b"<html>404 not found</html>" * 40, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_tar_is_a_fault(content: bytes) -> None:
    assert scan(content) == TarContents(faults=[Fault("", "not a readable tar")])


@pytest.mark.parametrize("kind", ["pax", "gnu", "ustar"])
@pytest.mark.parametrize("damaged", range(len(SIZES)))
def test_a_flipped_byte_in_a_header_is_a_fault_and_costs_that_member_alone(kind: str, damaged: int) -> None:
    """Wherever in the header it is; its checksum is over all bytes."""
    content = bytearray(tar_of(DAMAGED, FORMATS[kind]))
    whole = scan(bytes(content))
    others = [m for number, m in enumerate(whole.members) if number != damaged]
    start = whole.members[damaged].offset - 512
    for place in (0, 3, 60, 100, 124, 130, 136, 148, 156, 257, 300, 345, 499):
        content[start + place] ^= 0x41
        found = scan(bytes(content))
        assert found.members == others, place
        assert [fault.name for fault in found.faults] == [""], place
        assert "damaged at byte" in found.faults[0].reason
        content[start + place] ^= 0x41


@pytest.mark.parametrize("kind", ["pax", "gnu"])
@pytest.mark.parametrize("block", range(3))
def test_a_damaged_long_name_costs_that_member_alone(kind: str, block: int) -> None:
    """A long name is a header of its own, a block with the name, and the header that it is for."""
    members = {"1.txt": b"one", f"{'z' * 200}.txt": b"long", "2.txt": b"two"}
    content = bytearray(tar_of(members, FORMATS[kind]))
    if block != 1:  # names themselves have no checksum
        content[1024 + 512 * block + 10] ^= 0x41
        found = scan(bytes(content))
        assert {m.key for m in found.members} >= {"1", "2"}
        assert "z" * 200 not in {m.key for m in found.members}
        assert len(found.faults) == 1
    else:
        content[1024 + 512 : 1024 + 1024] = b"\xee" * 512
        assert {m.key for m in scan(bytes(content)).members} >= {"1", "2"}


def test_a_damaged_header_of_the_shard_is_a_fault_and_costs_no_member(tmp_path: Path) -> None:
    content = bytearray(write_tar(tmp_path / "x.tar", PAIRS, {"x": 1}).read_bytes())
    for place in (0, 124, 156, 512, 520):  # its name, size and kind; then its text: the length, the key
        content[place] ^= 0x41
        found = scan(bytes(content))
        assert len(found.members) == 4, place
        assert found.faults or found.header == {}, place
        content[place] ^= 0x41


def test_every_other_member_is_found_when_two_headers_are_damaged() -> None:
    content = bytearray(tar_of(DAMAGED))
    whole = scan(bytes(content)).members
    for number in (1, 3):
        content[whole[number].offset - 512] ^= 0x41
    found = scan(bytes(content))
    assert found.members == [whole[0], whole[2], whole[4]]
    places = [whole[number].offset - 512 for number in (1, 3)]
    assert found.faults == [Fault("", f"damaged at byte {place}", place) for place in places]
