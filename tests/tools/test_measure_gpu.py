"""tools/measure_gpu.py on a CPU: the same program on small shapes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config, write_config
from tests.launching import Launcher, only_error
from tools.benchmark.lines import Notebook
from tools.benchmark.report import of_kind

SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "model.vocab_size=384")
COMMANDS = r"^    python3 -m pip install (?:.*\\\n)*.*tools/measure_gpu.py.*$"  # of docs/gpu.md


@pytest.fixture
def tiny(make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all programs of tests have it
    (tmp_path / "config.toml").write_text(write_config(make_config(*SMALL)))
    return tmp_path / "config.toml"


def documented(root: Path) -> list[str]:
    """The commands to paste, as docs/gpu.md has them."""
    return re.findall(COMMANDS, (root / "docs" / "gpu.md").read_text(), re.MULTILINE)


def make_wheel(folder: Path) -> None:
    """The smallest there is."""
    folder.mkdir()
    info = "nothing_at_all-1.0.dist-info"
    with zipfile.ZipFile(folder / "nothing_at_all-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nothing_at_all.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nothing_at_all\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("loopback", ["down", "up"])
def test_the_commands_to_paste_start_on_a_machine_without_a_network(root: Path, tiny: Path, loopback: str) -> None:
    first, second = documented(root)
    command = {"down": first, "up": second}[loopback]
    job = {"down": "device", "up": "ours bf16 eager none"}[loopback]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip(
            "to leave the network needs root or user namespaces. What jobs are given for a machine without one is "
            "tested for everybody in tests/tools/benchmark/test_processes.py"
        )
    folder = tiny.parent / "copy"  # as it arrives on that machine: with wheels, without git
    folder.mkdir()
    for name in ("configs", "kernels", "oneflow_dist", "tools"):
        (folder / name).symlink_to(root / name)
    make_wheel(folder / "wheels")
    small = f"--config {shlex.quote(str(tiny))} --only {shlex.quote(job)}"
    raise_it = "ip link set lo up && " if loopback == "up" and shutil.which("ip") else ""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    site = {"PATH": path, "OUT": str(tiny.parent / "out"), "TMPDIR": str(tiny.parent)}
    end = subprocess.run(
        ["unshare", "-rn", "sh", "-c", f"{raise_it}{command.strip()} {small}"],
        cwd=folder,
        env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **site},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert end.returncode == 0, end.stderr
    lines = Notebook(tiny.parent / "out").lines
    assert {end["status"] for end in of_kind(lines, "end")} == {"measured"}
    assert any(line.get("job") == job for line in lines if line["kind"] != "end"), end.stdout


def test_wheels_are_those_that_the_doc_names_and_the_tested_versions(root: Path) -> None:
    named = dict(re.findall(r"([\w-]+)==([\d.]+)", (root / "Makefile").read_text().partition("\nwheels:")[2]))
    locked = dict(re.findall(r"^([\w-]+)==([\d.]+)", (root / "requirements.lock").read_text(), re.MULTILINE))
    assert {"torchtitan", "liger-kernel", "tyro"} <= named.keys()
    for package in named.keys() & locked.keys():
        assert named[package] == locked[package], package


def test_a_config_that_is_not_there_is_said_in_one_line(launcher: Launcher) -> None:
    end = launcher.run("tools/measure_gpu.py", "--config", "configs/no-such.toml")
    assert end.code == 2
    assert only_error(end).startswith("error: configs/no-such.toml: no such config file")
