"""torchrun under a launch: what is on the console when a rank ends."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch.agent import cause_of
from oneflow_dist.verdict import tell
from tests.launching import ENVIRONMENT, ROOT, free_port
from tests.messages import names

FLAGS = ("--nnodes=1", "--nproc-per-node=2", "--node-rank=0", "--master-addr=127.0.0.1", "--monitor-interval=0.1")
SAYS = "import json, os, sys, time\nif os.environ['RANK'] == sys.argv[1]: {ends}\ntime.sleep(60)\n"
REPORT = "{'message': 'the disk is full', 'timestamp': 1}"
WRITES = f"open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write(json.dumps({REPORT}))"


def run_agent(script: Path, ends: str, rank: int, port: int = 0, **env: str) -> tuple[int, list[str]]:
    """Its exit code, and the errors on the console."""
    script.write_text(SAYS.replace("{ends}", ends))
    command = [sys.executable, "launch/agent.py", *FLAGS, f"--master-port={port or free_port()}", script, str(rank)]
    end = subprocess.run(
        command, cwd=ROOT, env={**ENVIRONMENT, **env}, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in end.stderr, end.stderr
    return end.returncode, [line for line in end.stderr.splitlines() if line.startswith("error: ")]


def test_what_another_rank_said_is_on_the_console_once_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = f"{WRITES}; sys.exit(2)"
    code, errors = run_agent(tmp_path / "rank.py", ends, rank=1)
    assert code == 2
    (line,) = errors
    assert names(line, "rank 1", socket.gethostname(), "the disk is full")
    monkeypatch.setenv("ONEFLOW_ATTEMPT", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    tell("failed", "the disk is full")  # rank 0 has said the same, and is on the console
    assert run_agent(tmp_path / "rank.py", ends, rank=1, ONEFLOW_ATTEMPT=str(tmp_path)) == (2, [])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_was_killed_is_named(tmp_path: Path, rank: int) -> None:
    code, errors = run_agent(tmp_path / "rank.py", "os.kill(os.getpid(), 9)", rank)
    assert code == 1
    (line,) = errors
    assert names(line, f"rank {rank}", "SIGKILL")


def test_a_rank_that_was_killed_is_the_cause_and_not_those_that_miss_it(tmp_path: Path) -> None:
    report = tmp_path / "error.json"
    report.write_text(json.dumps({"message": "another rank has ended", "timestamp": 1}))
    misses = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(report))
    killed, ended = (
        ProcessFailure(local_rank=1, pid=2, exitcode=code, error_file=str(tmp_path / "none")) for code in (-9, -15)
    )
    assert cause_of(ChildFailedError("rank", {2: misses, 3: killed})) == (3, killed)
    assert cause_of(ChildFailedError("rank", {2: misses, 3: ended})) == (2, misses)  # by torchrun itself


def test_a_port_that_is_taken_is_a_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = run_agent(tmp_path / "rank.py", "pass", rank=0, port=port)
    assert code == 1
    (line,) = errors
    assert names(line, socket.gethostname(), port)
