from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from oneflow_dist.data import shards as shards_module
from oneflow_dist.data.index import index_tar
from oneflow_dist.data.shards import REMOTE_SHARDS_KEPT, ShardSet, fetched, index_name, list_shards, open_shards
from tests.messages import Message, names
from tests.tars import PAIRS, serve, write_tar


def refusal(pattern: str | Path, index_folder: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        open_shards("pets", str(pattern), index_folder)
    return Message(error.value)


def names_of(shards: ShardSet) -> list[str]:
    return [shards.name(i) for i in range(len(shards))]


# Local shards.


def test_members_with_one_key_are_one_sample(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "cats-000.tar", PAIRS)))
    assert len(shards) == 2
    assert [shards.read(i).files for i in range(2)] == [
        {"png": b"first image", "txt": b"one"},
        {"txt": b"two", "png": b"second image"},
    ]


def test_a_sample_is_named_by_source_shard_and_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "cats-000.tar", PAIRS)
    write_tar(tmp_path / "cats-001.tar", {"a/b/0003.json": b"{}"})
    shards = open_shards("pets", f"{tmp_path}/cats-{{000..001}}.tar")
    names = ["pets/cats-000/0001", "pets/cats-000/0002", "pets/cats-001/a/b/0003"]
    assert names_of(shards) == names
    assert [shards.read(i).key for i in range(3)] == names
    assert [shards.shard_of(i) for i in range(3)] == [(0, 0), (0, 1), (1, 0)]


def test_each_sample_has_the_header_of_its_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIRS, {"made": "here"})
    write_tar(tmp_path / "b.tar", {"9.txt": b"nine"})
    shards = open_shards("pets", f"{tmp_path}/*.tar")
    assert [shards.read(i).header for i in range(3)] == [{"made": "here"}, {"made": "here"}, {}]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    members = {"1.pickle": b"danger", "1.pt": b"danger", "1.txt": b"fine", "2.pkl": b"danger"}
    shards = open_shards("pets", str(write_tar(tmp_path / "x.tar", members)))
    assert [shards.read(i).files for i in range(len(shards))] == [{"txt": b"fine"}]


def test_empty_and_large_members_are_read_whole(tmp_path: Path) -> None:
    members = {"1.txt": b"", "1.png": bytes(range(256)) * 5000, "2.txt": b"x" * 513}
    shards = open_shards("pets", str(write_tar(tmp_path / "x.tar", members)))
    assert shards.read(0).files == {"txt": b"", "png": members["1.png"]}
    assert shards.read(1).files == {"txt": members["2.txt"]}


def test_braces_and_wildcards_come_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_tar(tmp_path / f"x-{number:02d}.tar", {f"{number}.txt": b""})
    for pattern, order in (("x-*.tar", "00 02 10"), ("x-{10,00}.tar", "10 00"), ("{x-1*,x-0*}.tar", "10 00 02")):
        shards = open_shards("pets", f"{tmp_path}/{pattern}")
        assert names_of(shards) == [f"pets/x-{number}/{int(number)}" for number in order.split()]


def test_shards_without_a_sample_lie_between_others_unseen(tmp_path: Path) -> None:
    for name, members in (("a", {}), ("b", PAIRS), ("c", {}), ("d", {}), ("e", {"9.txt": b""}), ("f", {})):
        write_tar(tmp_path / f"{name}.tar", members, {})
    shards = open_shards("pets", f"{tmp_path}/*.tar")
    assert names_of(shards) == ["pets/b/0001", "pets/b/0002", "pets/e/9"]
    assert shards.read(2).files == {"txt": b""}


AS_WRITTEN = {
    "a folder": ("set [v2]/a.tar", "set [v2]/a.tar"),
    "wildcards behind brackets": ("set [v2]/*.tar", "set [v2]/a.tar set [v2]/b.tar"),
    "braces behind brackets": ("set [v2]/{b,a}.tar", "set [v2]/b.tar set [v2]/a.tar"),
    "braces around a folder": ("{x,y}/a-{0..1}.tar", "{x,y}/a-0.tar {x,y}/a-1.tar"),
    "a brace that does not close": ("odd{/*.tar", "odd{/a.tar"),
    "a file with brackets": ("[1]-a.tar", "[1]-a.tar"),
    "a folder of several with brackets": ("{set [v2],odd{}/a.tar", "{set [v2],odd{}/a.tar"),
    "brackets in braces": ("{set [v2],plain}/a.tar", "set [v2]/a.tar plain/a.tar"),
    "brackets that are a pattern": ("plain/[ab].tar", "plain/a.tar plain/b.tar"),
    "braces that are a pattern": ("{plain,deep/set [[]v2]}/a.tar", "plain/a.tar deep/set [v2]/a.tar"),
}


@pytest.mark.parametrize(("pattern", "expected"), AS_WRITTEN.values(), ids=AS_WRITTEN)
def test_folders_and_paths_that_exist_mean_themselves(tmp_path: Path, pattern: str, expected: str) -> None:
    names = [
        *("set [v2]/a.tar", "set [v2]/b.tar", "{x,y}/a-0.tar", "{x,y}/a-1.tar", "odd{/a.tar", "[1]-a.tar", "1-a.tar"),
        *("plain/a.tar", "plain/b.tar", "deep/set [v2]/a.tar", "{set [v2],odd{}/a.tar"),
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.removeprefix(f"{tmp_path}/") for path in list_shards("pets", f"{tmp_path}/{pattern}")]
    assert found == expected.replace(".tar ", ".tar\n").split("\n")


def test_a_shard_that_is_missing_behind_a_folder_with_braces_is_named_in_it(tmp_path: Path) -> None:
    (tmp_path / "{x,y}").mkdir()
    (tmp_path / "{x,y}" / "a-0.tar").touch()
    assert refusal(f"{tmp_path}/{{x,y}}/a-{{0..1}}.tar").startswith(
        f"source pets: no such shard {tmp_path}/{{x,y}}/a-1.tar; "
    )


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tar(tmp_path / "a.tar", PAIRS)
    assert len(open_shards("pets", "~/*.tar", "~/indexes")) == 2
    assert len(list((tmp_path / "indexes").iterdir())) == 1


def test_wildcards_leave_out_what_this_package_writes_beside_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIRS)
    for name in ("a.tar.index", "a.tar.report.json", "b.tar.partial", "settings.json", "manifest.json"):
        (tmp_path / name).touch()
    for name in ("quarantine.jsonl", "contact_sheet.png"):
        (tmp_path / name).touch()
    assert list_shards("pets", f"{tmp_path}/*") == [f"{tmp_path}/a.tar"]
    assert list_shards("pets", f"{tmp_path}/manifest.json") == [f"{tmp_path}/manifest.json"]


@pytest.mark.parametrize("folder", [None, "indexes"])
def test_shards_of_one_name_have_indexes_and_keys_of_their_own(tmp_path: Path, folder: str | None) -> None:
    indexes = None if folder is None else f"{tmp_path}/{folder}"
    for name in ("a/0", "b/0", "b/1", "c/a/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", {"k.txt": name.encode()})
    one, other = (open_shards("pets", f"{tmp_path}/{part}/0.tar", indexes) for part in "ab")
    assert (one.read(0).files, other.read(0).files) == ({"txt": b"a/0"}, {"txt": b"b/0"})
    assert names_of(one) == names_of(other) == ["pets/0/k"]
    assert names_of(open_shards("pets", f"{tmp_path}/{{a,b}}/*.tar", indexes)) == [
        "pets/a/0/k",
        "pets/b/0/k",
        "pets/1/k",
    ]
    deep = open_shards("pets", f"{tmp_path}/{{a,c/a}}/0.tar", indexes)
    assert names_of(deep) == [f"pets/{tmp_path.name}/a/0/k", "pets/c/a/0/k"]


def test_shards_that_differ_in_their_extension_alone_have_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("0.tar", "0.old"):
        write_tar(tmp_path / name, PAIRS)
    names = names_of(open_shards("pets", f"{tmp_path}/0.{{tar,old}}"))
    assert [name.partition("/0001")[0] for name in names[::2]] == ["pets/0.tar", "pets/0.old"]


def test_what_shards_hold_and_what_is_not_read_is_added_up(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {**PAIRS, "1.gif": b""})
    write_tar(tmp_path / "b.tar", {"9.txt": b"nine", "9.gif": b"", "9.caption": b""})
    shards = open_shards("pets", f"{tmp_path}/*.tar")
    assert (shards.counts, shards.unread) == ({"png": 2, "txt": 3}, {"gif": 2, "caption": 1})


def test_that_several_shards_are_indexed_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", PAIRS)
    for shown in (True, False):
        open_shards("pets", f"{tmp_path}/*.tar")
        printed = capsys.readouterr()
        assert printed.out == ""
        assert ("pets: indexing" in printed.err) == ("2/2" in printed.err) == shown


def test_that_one_shard_is_indexed_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_shards("pets", str(write_tar(tmp_path / "a.tar", PAIRS)))
    assert capsys.readouterr().err == ""


def test_samples_are_read_in_any_order_and_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIRS)
    write_tar(tmp_path / "b.tar", {"9.txt": b"nine"})
    shards = open_shards("pets", f"{tmp_path}/*.tar")
    texts = [shards.read(i).files["txt"] for i in (2, 0, 1, 2)]
    assert texts == [b"nine", b"one", b"two", b"nine"]


def test_shards_are_readable_after_a_fork(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "a.tar", PAIRS)))
    before = shards.read(0)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(shards.read(0)))
    child.start()
    assert answers.get(timeout=30) == before
    child.join()


def test_local_shards_are_shared_by_all_lanes(tmp_path: Path) -> None:
    shards = open_shards("pets", str(write_tar(tmp_path / "a.tar", PAIRS)))
    assert shards.for_lane() is shards


# Remote shards, from a server that counts what is asked of it.


@dataclass(frozen=True)
class Site:
    """A folder at an address, and how often each of its files was fetched."""

    folder: Path
    address: str
    fetched: Counter[str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Four shards of three samples each, without indexes."""
    folder = tmp_path / "site"
    folder.mkdir()
    for shard in range(4):
        members = {f"{shard}{number}.txt": f"text {shard} {number}".encode() for number in range(3)}
        write_tar(folder / f"x-{shard}.tar", members, {"shard": shard})
    with serve(folder) as (address, fetched):
        yield Site(folder, address, fetched)


@pytest.fixture
def indexes(site: Site, tmp_path: Path) -> str:
    """A local folder with the indexes of the site's shards."""
    folder = tmp_path / "indexes"
    folder.mkdir()
    for path in site.folder.glob("*.tar"):
        Path(index_name(f"{site.address}/{path.name}", str(folder))).write_bytes(index_tar(path, path.name))
    return str(folder)


@pytest.mark.parametrize("where", ["local folder", "beside", "folder of the site"])
def test_remote_shards_are_read_as_local_ones(site: Site, indexes: str, where: str) -> None:
    folder: str | None = indexes
    if where == "beside":
        folder = None
        for path in site.folder.glob("*.tar"):
            path.with_name(f"{path.name}.index").write_bytes(index_tar(path, path.name))
    elif where == "folder of the site":
        shutil.copytree(indexes, site.folder / "offsets")
        folder = f"{site.address}/offsets"
    remote = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", folder)
    local = open_shards("pets", f"{site.folder}/x-{{0..3}}.tar")
    assert remote.is_remote
    assert not local.is_remote
    assert names_of(remote) == names_of(local)
    assert [remote.read(i) for i in range(12)] == [local.read(i) for i in range(12)]
    assert [remote.read(i).header for i in (0, 11)] == [{"shard": 0}, {"shard": 3}]


def test_a_remote_shard_is_fetched_once_when_first_read(site: Site, indexes: str) -> None:
    shards = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", indexes)
    assert len(shards) == 12
    assert site.fetched == {}
    for index in (0, 2, 1, 0, 4, 0, 3):
        shards.read(index)
    assert site.fetched == {"x-0.tar": 1, "x-1.tar": 1}


def test_a_shard_that_is_fetched_ahead_is_not_fetched_again(site: Site, indexes: str) -> None:
    shards = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", indexes)
    shards.prefetch(1)
    shards.prefetch(1)
    assert shards.read(3).files == {"txt": b"text 1 0"}
    shards.prefetch(1)
    assert shards.read(5).files == {"txt": b"text 1 2"}
    assert site.fetched == {"x-1.tar": 1}


def test_no_more_than_two_remote_shards_are_kept_and_no_file_is_left(
    site: Site, indexes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    shards = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", indexes)
    assert REMOTE_SHARDS_KEPT == 2
    for index in (0, 3, 6, 9, 0):
        shards.read(index)
        opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert sum(str(scratch) in str(path) for path in opened) <= 2
    assert list(scratch.iterdir()) == []
    assert site.fetched == {"x-0.tar": 2, "x-1.tar": 1, "x-2.tar": 1, "x-3.tar": 1}


def test_shards_that_are_fetched_ahead_and_never_read_are_dropped(site: Site, indexes: str) -> None:
    """As when all their samples are in memory already."""
    shards = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", indexes)
    for shard in (0, 1, 2, 3):
        shards.prefetch(shard)
    assert list(shards._fetches) == [2, 3]


def test_lanes_of_one_process_do_not_drop_each_others_shards(site: Site, indexes: str) -> None:
    shards = open_shards("pets", f"{site.address}/x-{{0..3}}.tar", indexes)
    lanes = [shards.for_lane() for _ in range(4)]
    for sample in range(3):
        for number, lane in enumerate(lanes):
            assert lane.read(3 * number + sample).files == {"txt": f"text {number} {sample}".encode()}
    assert site.fetched == {f"x-{number}.tar": 1 for number in range(4)}


def test_a_fetched_file_is_gone_at_the_end(site: Site) -> None:
    (site.folder / "page").write_bytes(b"content")
    with fetched(f"{site.address}/page") as path:
        assert path.read_bytes() == b"content"
    assert not path.exists()


# What is refused, and how it is said.


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-000.tar", PAIRS)
    advice = "write the shards first or mend the pattern"
    assert refusal(f"{tmp_path}/x-{{000..001}}.tar") == f"source pets: no such shard {tmp_path}/x-001.tar; {advice}"
    assert refusal(f"{tmp_path}/y-*.tar") == f"source pets: no such shard {tmp_path}/y-*.tar; {advice}"


def test_braces_that_do_not_close_are_named(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/x-{{0..1.tar") == (
        f"source pets: {tmp_path}/x-{{0..1.tar: its braces are not balanced; mend the pattern"
    )


@pytest.mark.parametrize("pattern", ["", "/", "/deep/*"])
def test_a_folder_is_refused_with_what_to_write(tmp_path: Path, pattern: str) -> None:
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    folder = inner if pattern == "/deep/*" else tmp_path
    assert refusal(f"{tmp_path}{pattern}") == (
        f"source pets: {folder}{pattern[:1] * (pattern == '/')} is a folder; name its shards, as {folder}/*.tar"
    )


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>" * 40, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x-000.tar"
    path.write_bytes(content)
    assert refusal(path) == "pets/x-000.tar: not a readable tar; write this shard again"


def test_a_shard_with_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x-000.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0001.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "0002.txt"
        tar.addfile(info)
    assert refusal(path) == "pets/x-000.tar, member 0001.txt: a link, not a file; write this shard again"


def test_shards_with_nothing_to_read_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", {"1.mp4": b"x"})
    assert refusal(path) == (
        f"source pets: no samples in {path} (not read: 1 .mp4); a sample is members with one key, as "
        "0001.png + 0001.txt"
    )


@pytest.mark.parametrize("size", range(0, 4 * 1024, 256))
def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    """Four members of a header and a block each, then the mark of the end: no cut may lose a sample in silence."""
    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(path).startswith("pets/x-000.tar")


def test_a_shard_that_lost_its_end_after_it_was_indexed_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    open_shards("pets", str(path))
    path.write_bytes(path.read_bytes()[:1700])
    os.utime(path, (0, 0))
    assert refusal(path) == (
        "pets/x-000.tar, member 0001.txt: the tar is cut off inside it, at byte 1700; write this shard again"
    )


def test_a_shard_that_is_cut_off_while_it_is_open_is_named_with_the_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", {"1.txt": b"one", "2.txt": bytes(10_000)})
    shards = open_shards("pets", str(path))
    assert shards.read(0).files == {"txt": b"one"}
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(ValueError) as error:
        shards.read(1)
    assert Message(error.value) == f"{path}, sample 2: the shard was cut off since it was opened; copy it again"
    assert shards.read(0).files == {"txt": b"one"}


def test_an_error_of_the_disk_is_named_with_shard_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    shards = open_shards("pets", str(path))
    monkeypatch.setattr(shards_module.os, "pread", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        shards.read(1)
    assert error.value.filename == f"{path}, sample 0002"


def test_other_content_of_the_same_size_and_age_is_found_when_the_shard_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-000.tar", PAIRS)
    open_shards("pets", str(path))
    write_tar(path, {name: data.upper() for name, data in PAIRS.items()})
    os.utime(path, (0, 0))
    shards = open_shards("pets", str(path))
    with pytest.raises(ValueError) as error:
        shards.read(0)
    assert Message(error.value) == (
        f"{path}: not the shard that {path}.index was made of; delete that index, it is then made again"
    )
    (tmp_path / "x-000.tar.index").unlink()
    assert open_shards("pets", str(path)).read(0).files["txt"] == b"ONE"


def test_a_shard_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    assert refusal(f"{tmp_path}/{{x,x}}.tar") == f"source pets: {path} is named 2 times; name each shard once"
    assert refusal(f"{tmp_path}{{/,//}}x.tar") == f"source pets: {path} is named 2 times; name each shard once"


def test_more_shards_than_files_can_be_open_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    asked = []
    monkeypatch.setattr(shards_module.resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(shards_module.resource, "getrlimit", lambda _: (256, 257))
    assert refusal(path) == "source pets: its shards need 2 open files, the limit is 257; use larger shards"
    monkeypatch.setattr(shards_module.resource, "getrlimit", lambda _: (256, 300))
    open_shards("pets", str(path))
    assert asked == [(300, 300)]


def test_a_remote_shard_without_an_index_is_refused_with_the_command_that_makes_it(site: Site, tmp_path: Path) -> None:
    url = f"{site.address}/x-0.tar"
    advice = f"write it with: oneflow index '{url}' --output FOLDER"
    assert refusal(url, str(tmp_path)) == (
        f"{url}: a remote shard is read through its index, but {index_name(url, str(tmp_path))} is missing; {advice}"
    )
    message = refusal(url)
    assert names(message, f"{url}.index", "FileNotFoundError", f"oneflow index '{url}'", "`index`")


def test_a_damaged_or_older_index_of_a_remote_shard_is_refused_with_the_same_command(
    site: Site, tmp_path: Path
) -> None:
    url = f"{site.address}/x-0.tar"
    Path(index_name(url, str(tmp_path))).write_bytes(b'{"format": "oneflow index 2"}\n')
    message = refusal(url, str(tmp_path))
    assert message.startswith(f"{index_name(url, str(tmp_path))}: damaged index (")
    assert f"oneflow index '{url}' --output FOLDER" in message


def test_a_remote_shard_that_is_not_there_is_named(site: Site, indexes: str) -> None:
    shards = open_shards("pets", f"{site.address}/x-0.tar", indexes)
    (site.folder / "x-0.tar").unlink()
    with pytest.raises(ValueError) as error:
        shards.read(0)
    assert str(error.value).startswith(f"{site.address}/x-0.tar: cannot be fetched: FileNotFoundError(")
    assert str(error.value).endswith("; check the address and the network")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x-0.tar", "nothing://there/x-0.tar"], ids=["server", "kind"])
def test_an_address_at_which_nothing_is_is_named(tmp_path: Path, url: str) -> None:
    path = write_tar(tmp_path / "x-0.tar", PAIRS)
    Path(index_name(url, str(tmp_path))).write_bytes(index_tar(path, "x"))
    with pytest.raises(ValueError, match=f"^{url}: cannot be fetched: "):
        open_shards("pets", url, str(tmp_path)).read(0)


@pytest.mark.parametrize("place", [600, -1])
def test_a_remote_shard_of_another_checksum_is_refused(site: Site, indexes: str, place: int) -> None:
    shards = open_shards("pets", f"{site.address}/x-0.tar", indexes)
    content = bytearray((site.folder / "x-0.tar").read_bytes())
    content[place] ^= 0x01
    (site.folder / "x-0.tar").write_bytes(content)
    with pytest.raises(ValueError) as error:
        shards.read(0)
    assert Message(error.value) == (
        f"pets: {site.address}/x-0.tar is not the shard that its index was made of; index it again"
    )


def test_a_damaged_index_of_a_remote_shard_is_named(site: Site, indexes: str) -> None:
    name = index_name(f"{site.address}/x-0.tar", indexes)
    Path(name).write_bytes(b"<html>404</html>")
    assert refusal(f"{site.address}/x-0.tar", indexes).startswith(f"{name}: damaged index (")
