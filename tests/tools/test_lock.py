"""tools/lock.py against an index of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from tests.messages import naming
from tests.tars import answering
from tools import lock


class Quiet(SimpleHTTPRequestHandler):
    def log_request(self, *_: object) -> None:
        """A request is no output of a test."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index that has torch, with and without CUDA, and a package of which there is no wheel."""
    for name, files in {
        "torch": (
            "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            "torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_aarch64.whl",
            "torch-2.13.0-cp314-cp314-macosx_14_0_arm64.whl",
            "torch-2.13.0-cp314-cp314t-manylinux_2_28_x86_64.whl",
            "torch-2.13.0-cp310-cp310-manylinux_2_28_x86_64.whl",
            "torch-2.13.0-cp311-cp311-win_amd64.whl",
            "torch-2.13.0.post1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "torch-2.1-old name.whl",
            "torch-2.13.0.tar.gz",
        ),
        "old-name": ("old_name-1.0.tar.gz",),
    }.items():
        lines = [f'<a href="../files/{file}#sha256={place:064x}">{file}</a>' for place, file in enumerate(files)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("\n".join(lines))
    with answering(partial(Quiet, directory=str(tmp_path))) as address:
        yield address


def write(text: str, index: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lock after the tool was run on it."""
    path = folder / "requirements.lock"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["lock.py", str(path), "--indexes", index, f"{index}/empty"])
    lock.main()
    return path.read_text()


def test_hashes_are_of_all_builds_for_machines_that_are_supported(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = " ".join(f"--hash=sha256:{place:064x}" for place in (0, 1, 2))
    marked = "torch==2.13.0; sys_platform == 'linux' --hash=sha256:" + "f" * 64
    text = write(f"# torch==1\n\ntorch==2.13.0\n{marked}\n", index, tmp_path, monkeypatch)
    assert text.splitlines() == [
        "# torch==1",
        "",
        f"torch==2.13.0 {hashes}",
        f'torch==2.13.0; sys_platform == "linux" {hashes}',
    ]


@pytest.mark.parametrize("line", ["torch==9.0", "old_name==1.0", "unheard-of==1.0"])
def test_a_version_without_a_wheel_is_an_error(
    line: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=naming(line)):
        write(f"{line}\n", index, tmp_path, monkeypatch)
    assert (tmp_path / "requirements.lock").read_text() == f"{line}\n"
