"""The whole program. Nodes are processes that are told so, each with its own environment."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.faults import Fault
from launch.health import exclude
from tests.launching import ROOT, Launcher, only_error
from tests.messages import names

# Becomes the only rank of a node, after it has done what the environment says of that node.
PROGRAM = f"""
import os, runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
rank = os.environ.get("RANK", "0")
os.environ.update(GROUP_RANK=rank, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", ONEFLOW_NODE="node" + rank)
exec(os.environ.get("NODE_" + rank, ""))
runpy.run_module("launch.health", run_name="__main__", alter_sys=True)
"""
Check = Callable[..., tuple[list[str], int]]


@pytest.fixture
def check(tmp_path: Path, launcher: Launcher, train_command: Callable[..., list[str]]) -> Check:
    """What rank 0 has printed, and the exit code, which is that of all ranks."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "attempt").mkdir()

    def run(num_nodes: int, *overrides: str, **nodes: str) -> tuple[list[str], int]:
        env = {"ONEFLOW_EXCLUDE": str(tmp_path / "excluded"), "ONEFLOW_ATTEMPT": str(tmp_path / "attempt")}
        env |= {name.upper(): line for name, line in nodes.items()}
        words = train_command(tmp_path / "run", *overrides)[2:]
        ends = launcher.run_ranks(num_nodes, tmp_path / "program.py", *words, env=env)
        assert {(end.code, end.stderr) for end in ends} == {(ends[0].code, "")}, ends
        assert not any(end.stdout for end in ends[1:]), ends
        assert list((tmp_path / "run").iterdir()) == []
        return ends[0].stdout.splitlines(), ends[0].code

    return run


def excluded(folder: Path) -> list[str]:
    path = folder / "excluded"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def told(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in (folder / "attempt").iterdir()]


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_nodes_that_are_fit_are_told_in_one_line(num_nodes: int, check: Check, tmp_path: Path) -> None:
    lines, code = check(num_nodes)
    assert (len(lines), code) == (1, 0), lines
    assert names(lines[0], max(1, num_nodes), "1 cpu", "GFLOP/s", "GiB")
    assert excluded(tmp_path) == told(tmp_path) == []


DAY_OFF = "now = time.time; time.time = lambda: now() + 86400.0"
OTHER_CODE = "import launch.surroundings as s; s.code_hash = lambda: 'other'"


def test_nodes_that_are_not_as_most_are_named_and_excluded(check: Check, tmp_path: Path) -> None:
    lines, code = check(5, node_1=DAY_OFF, node_3=OTHER_CODE)
    assert code == 3
    assert any(names(line, "node1", "86400 s") for line in lines), lines
    assert any(names(line, "node3", "other") for line in lines), lines
    assert names(lines[-1], "node3", tmp_path / "excluded")
    assert (sorted(excluded(tmp_path)), told(tmp_path)) == (["node1", "node3"], ["unfit"])


def test_what_the_user_can_mend_excludes_no_node(check: Check, tmp_path: Path) -> None:
    lines, code = check(2, f"data.tokenizer={tmp_path / 'missing'}")
    assert code == 2
    assert names(lines[0], "node0, node1", tmp_path / "missing")
    assert (excluded(tmp_path), told(tmp_path)) == ([], ["failed"])


def test_a_gpu_with_errors_excludes_its_node_even_where_that_is_the_only_one(check: Check, tmp_path: Path) -> None:
    fake = tmp_path / "bin/nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '0, GPU-0, 570.124.06, 4, 0x0000000000000001, 12'\n")
    fake.chmod(0o755)
    with_gpus = f"os.environ['PATH'] = '{fake.parent}:' + os.environ['PATH']; os.environ.pop('CUDA_VISIBLE_DEVICES', 0)"
    lines, code = check(1, node_0=with_gpus)
    assert any(names(line, "node0", "GPU 0", 12) for line in lines)
    assert any(names(line, "node0", 1, "torch", 0) for line in lines)  # which may come of the first
    assert (excluded(tmp_path), code) == (["node0"], 3)


def test_a_config_that_cannot_be_read_is_one_line(launcher: Launcher) -> None:
    end = launcher.run("-m", "launch.health", "configs/debug.toml", "model.widht=3")
    assert end.code == 2
    assert names(only_error(end), "model.widht", "model.width")


def test_a_node_is_excluded_once_with_the_date_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new/excluded"
    monkeypatch.setenv("ONEFLOW_EXCLUDE", str(path))
    ecc, hot = (Fault("node7", "node", kind, f"{kind} is wrong") for kind in ("ecc", "hot"))
    exclude([ecc, hot])
    first = path.read_text()
    assert re.fullmatch(r"node7  # \d{4}-\d\d-\d\d ecc is wrong; hot is wrong\n", first)
    exclude([ecc])
    assert path.read_text() == first
    exclude([ecc, Fault("node70", "node", "ecc", "ecc is wrong")])
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["node7", "node70"]
    assert all(names(line, "node7", path) for line in capsys.readouterr().out.splitlines())
