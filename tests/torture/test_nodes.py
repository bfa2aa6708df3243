"""Ranks in network namespaces with links of their own; tests/torture/nodes.py has more, by real launchers."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launching import ROOT, Job, Launcher, Run, read_metrics, wait_for_step, without_timings
from tests.messages import names
from tests.torture.nodes import ADDRESS, Network

# Becomes the only rank of a node.
PROGRAM = f"""
import ctypes, os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
prefix, sys.argv[:] = sys.argv[1], sys.argv[2:]
rank = os.environ["RANK"]
os.environ.update(GROUP_RANK=rank, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", ONEFLOW_NODE="node" + rank)
os.environ.update(MASTER_ADDR="{ADDRESS}.1", GLOO_SOCKET_IFNAME="eth0")
with open(f"/run/netns/{{prefix}}-{{rank}}") as space:
    assert ctypes.CDLL(None).setns(space.fileno(), 0) == 0
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
Start = Callable[..., Job]


def why_not() -> str:
    """Why this machine cannot have such nodes; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return "" if shutil.which("ip") and shutil.which("tc") else "network namespaces need ip and tc, of iproute2"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def start(tmp_path: Path, launcher: Launcher) -> Start:
    """Starts a module on every node of a network."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def on(network: Network, *words: str) -> Job:
        env = {"ONEFLOW_EXCLUDE": str(tmp_path / "excluded")}
        return launcher.start(tmp_path / "program.py", network.prefix, *words, num_ranks=len(network.nodes), env=env)

    return on


def test_the_node_with_a_slow_link_is_named_and_without_one_none(
    start: Start, tmp_path: Path, train_command: Callable[..., list[str]]
) -> None:
    words = ["launch.health", *train_command(tmp_path / "run")[2:]]
    with Network(4) as network:
        ends = start(network, *words).wait()
        assert [end.code for end in ends] == [0] * 4, ends
        network.limit(2, "50mbit")
        ends = start(network, *words).wait()
    assert [end.code for end in ends] == [3] * 4, ends
    assert names(ends[0].stdout.splitlines()[0], "node2", "sends to other nodes", "MB/s"), ends[0]
    assert [line.split()[0] for line in (tmp_path / "excluded").read_text().splitlines()] == ["node2"]


def test_a_run_on_two_nodes_waits_for_a_cable_and_is_that_of_one_node(
    start: Start, tmp_path: Path, train_command: Callable[..., list[str]], torchrun_of_two: Run
) -> None:
    with Network(2) as network:
        job = start(network, *train_command(tmp_path / "run")[1:])
        wait_for_step(tmp_path / "run", 3)
        network.set_link(1, "down")
        time.sleep(1.0)
        steps = len(read_metrics(tmp_path / "run"))
        network.set_link(1, "up")
        ends = job.wait()
    assert [end.code for end in ends] == [0, 0], ends
    assert steps < 20
    ours, theirs = (without_timings(read_metrics(folder)) for folder in (tmp_path / "run", torchrun_of_two.folder))
    assert ours == theirs


def test_a_node_that_is_lost_without_a_word_is_named_by_the_other(
    start: Start, tmp_path: Path, train_command: Callable[..., list[str]]
) -> None:
    overrides = ("guard.hang_seconds=1", "train.steps=1000000", "sampling.every_steps=0")
    with Network(2) as network:
        job = start(network, *train_command(tmp_path / "run", *overrides)[1:])
        wait_for_step(tmp_path / "run", 3)
        network.set_link(1, "down")
        os.killpg(job.pids[1], 9)
        first, _ = job.wait()
    assert first.code == 1
    assert re.search(r"error: .*rank 1 .*silent", first.stderr)
