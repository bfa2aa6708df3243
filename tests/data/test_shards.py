from __future__ import annotations

import io
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import pytest

from oneflow_dist.data.shards import EXTENSIONS, ShardSet, open_shards

PAIRS = {"0001.png": b"first image", "0001.txt": b"one", "0002.txt": b"two", "0002.png": b"second image"}


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def refusal(pattern: str | Path) -> str:
    with pytest.raises(ValueError) as error:
        open_shards("pets", str(pattern))
    return str(error.value)


def test_members_with_one_key_are_one_sample(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "cats-000.tar", PAIRS)))
    assert len(shards) == 2
    assert [shards.read(i).files for i in range(2)] == [
        {"png": b"first image", "txt": b"one"},
        {"txt": b"two", "png": b"second image"},
    ]


def test_a_sample_is_named_by_source_shard_and_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "cats-000.tar", PAIRS)
    write_tar(tmp_path / "cats-001.tar", {"a/b/0003.v2.json": b"{}"})
    shards = open_shards("pets", f"{tmp_path}/cats-{{000..001}}.tar")
    names = ["pets/cats-000/0001", "pets/cats-000/0002", "pets/cats-001/a/b/0003"]
    assert [shards.name(i) for i in range(3)] == names
    assert [shards.read(i).key for i in range(3)] == names


def test_an_extension_is_all_after_the_first_dot_in_lower_case(tmp_path: Path) -> None:
    shards = open_shards(
        "pets", str(write_tar(tmp_path / "x.tar", {"1.0.PNG": b"a", "1.1.png": b"b", "1.JSON": b"{}"}))
    )
    assert shards.read(0).files == {"0.png": b"a", "1.png": b"b", "json": b"{}"}


def test_what_is_not_text_or_image_is_not_read(tmp_path: Path) -> None:
    members = {"1.pickle": b"danger", "1.npy": b"danger", "1.pt": b"danger", "1.txt": b"fine", "README": b"x"}
    shards = open_shards("pets", str(write_tar(tmp_path / "x.tar", members)))
    assert [shards.read(i).files for i in range(len(shards))] == [{"txt": b"fine"}]
    assert EXTENSIONS == ("txt", "json", "png", "jpg", "jpeg", "webp")


def test_folders_and_links_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("folder.txt", tarfile.DIRTYPE),
            ("link.txt", tarfile.SYMTYPE),
            ("0001.txt", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO())
    shards = open_shards("pets", str(path))
    assert shards.keys == ["0001"]


def test_empty_and_large_members_are_read_whole(tmp_path: Path) -> None:
    members = {"1.txt": b"", "1.png": bytes(range(256)) * 5000, "2.txt": b"x" * 513}
    shards = open_shards("pets", str(write_tar(tmp_path / "x.tar", members)))
    assert shards.read(0).files == {"txt": b"", "png": members["1.png"]}
    assert shards.read(1).files == {"txt": members["2.txt"]}


def test_braces_and_wildcards_come_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_tar(tmp_path / f"x-{number:02d}.tar", {f"{number}.txt": b""})
    assert open_shards("pets", f"{tmp_path}/x-*.tar").keys == ["0", "2", "10"]
    assert open_shards("pets", f"{tmp_path}/x-{{10,00}}.tar").keys == ["10", "0"]


def test_samples_are_read_in_any_order_and_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIRS)
    write_tar(tmp_path / "b.tar", {"9.txt": b"nine"})
    shards = open_shards("pets", f"{tmp_path}/*.tar")
    texts = [shards.read(i).files["txt"] for i in (2, 0, 1, 2)]
    assert texts == [b"nine", b"one", b"two", b"nine"]


def test_shards_are_opened_again_after_pickling(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "a.tar", PAIRS)))
    before = shards.read(0)
    again: ShardSet = pickle.loads(pickle.dumps(shards))
    assert again.read(0) == before


def test_shards_are_readable_after_a_fork(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "a.tar", PAIRS)))
    before = shards.read(0)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(shards.read(0)))
    child.start()
    assert answers.get(timeout=30) == before
    child.join()


# What is refused, and how it is said.


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-000.tar", PAIRS)
    assert refusal(f"{tmp_path}/x-{{000..001}}.tar") == (
        f"source pets: no such shard {tmp_path}/x-001.tar; write the shards first or mend the mixture's pattern"
    )
    assert refusal(f"{tmp_path}/y-*.tar") == (
        f"source pets: no such shard {tmp_path}/y-*.tar; write the shards first or mend the mixture's pattern"
    )


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>" * 40, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x-000.tar"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith("pets/x-000.tar: not a readable tar: ")
    assert message.endswith("; write this shard again")


def test_a_shard_with_nothing_to_read_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", {"1.npy": b"x"})
    assert refusal(path) == (
        f"source pets: no samples in {path}; a sample is members with one key, as 0001.png + 0001.txt"
    )


def test_a_shard_cut_inside_a_member_is_named_with_its_sizes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", {"1.txt": b"x" * 5000})
    path.write_bytes(path.read_bytes()[:4096])
    message = refusal(path)
    assert message.startswith("pets/x-000.tar: ")
    assert "write this shard again" in message


@pytest.mark.parametrize("size", range(0, 4 * 1024, 256))
def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    """Four members of a header and a block each, then the mark of the end: no cut may lose a sample in silence."""
    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(path).startswith("pets/x-000.tar: ")


def test_a_damaged_header_inside_a_shard_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    content = bytearray(path.read_bytes())
    content[2048:2100] = b"\xee" * 52  # the header of the third member
    path.write_bytes(content)
    assert refusal(path).startswith("pets/x-000.tar: ")
