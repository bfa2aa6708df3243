"""oneflow index: indexes ahead of a run, and every byte of a shard against its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from oneflow_dist.commands import index
from oneflow_dist.data.shards import open_shards


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["oneflow index", *map(str, arguments)])
    index.main()


@pytest.fixture
def folder(digits: Path, tmp_path: Path) -> Path:
    for path in digits.glob("single-train-*.tar"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_indexes_lie_beside_the_shards_or_in_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, folder / "single-train-*.tar", "--check")
    assert "all intact" in capsys.readouterr().out
    assert len(list(folder.glob("*.tar.index"))) == len(list(folder.glob("*.tar"))) == 2
    run(monkeypatch, f"{folder}/single-train-{{000000..000001}}.tar", "--output", folder / "indexes")
    beside, apart = (sorted(path.read_bytes() for path in f.glob("*.index")) for f in (folder, folder / "indexes"))
    assert beside == apart
    shards = open_shards("x", f"{folder}/single-train-*.tar", str(folder / "indexes"))
    assert shards.read(0).files["txt"]


def test_a_changed_byte_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = folder / "single-train-000000.tar"
    run(monkeypatch, pattern)
    content = bytearray(pattern.read_bytes())
    content[len(content) // 2] ^= 1  # beyond the edges, which are compared whenever a shard is opened
    written = pattern.stat()
    pattern.write_bytes(content)
    os.utime(
        pattern, ns=(written.st_atime_ns, written.st_mtime_ns)
    )  # as a disk does it: a younger one is another shard
    assert len(content) > 4 * 64 * 1024
    with pytest.raises(ValueError, match=r"single-train-000000.tar: its sha256 is [0-9a-f]{64}, but .* was indexed; "):
        run(monkeypatch, pattern, "--check")


def test_the_index_of_a_remote_shard_needs_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{folder}/single-train-000000.tar"
    with pytest.raises(ValueError, match="an index cannot be written beside a remote shard; give --output FOLDER"):
        run(monkeypatch, url)
    run(monkeypatch, url, "--output", folder / "indexes")
    remote = open_shards("x", url, str(folder / "indexes"))
    local = open_shards("x", str(folder / "single-train-000000.tar"))
    assert remote.is_remote
    assert len(remote) == len(local)
    assert remote.read(7) == local.read(7)
