from __future__ import annotations

import time
from pathlib import Path

from launch.meeting import Meeting
from tests.launching import ROOT, Launcher

PROGRAM = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from launch.meeting import Meeting
rank = os.environ["RANK"]
meeting = Meeting("node" + rank, lambda nodes, text: print(*nodes, text))
print(meeting.say("word", "said by " + rank))
meeting.wait("coming", 60.0)
if rank in ("1", "2"):
    time.sleep(600)
meeting.wait("going", 0.5)
"""


def test_a_process_alone_meets_itself() -> None:
    meeting = Meeting("node0", lambda nodes, text: None)
    meeting.wait("coming", 0.0)
    assert meeting.say("word", "yes") == "yes"


def test_who_does_not_come_is_named_by_one_rank_with_its_node(tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    job = launcher.start(tmp_path / "program.py", num_ranks=4)
    while any(launcher.ask({"poll": job.pids[rank]}) is None for rank in (0, 3)):
        time.sleep(0.05)
    job.kill()
    ends = job.wait()
    assert [end.code for end in ends] == [3, -9, -9, 3]
    assert all(end.stdout.startswith("said by 0\n") for end in (ends[0], ends[3]))
    (said,) = [line for end in ends for line in end.stdout.splitlines() if "going" in line]
    assert said.startswith("node1 node2 ranks 1-2 ")
