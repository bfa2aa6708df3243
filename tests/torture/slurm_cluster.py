"""A SLURM of several nodes on this machine, of Debian's slurm-wlm and munge, in a folder of its own. Needs root."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.processes import find_processes, wait_until, words_of

PORT = 26817  # of the controller; those of the nodes follow
wait_for = functools.partial(wait_until, seconds=90.0, pause=0.1)  # for what takes 1 to 20; SLURM is slow to answer
CONF = """
ClusterName=torture
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=500000
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=30
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=off
"""


class Cluster:
    """Nodes node1, node2, ..., each of one CPU; a partition "main", and "urgent", whose jobs take nodes from it."""

    def __init__(self, folder: Path, num_nodes: int):
        """Nothing runs before `with`."""
        self.folder = folder.resolve()
        self.num_nodes = num_nodes
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        for name in ("munge", "state", *(f"spool-node{number}" for number in range(1, self.num_nodes + 1))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name).chmod(0o755)
        self._start_munge()
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                folder=self.folder,
                host=host,
                port=PORT,
                nodes=self.num_nodes,
                first=PORT + 1,
                last=PORT + self.num_nodes,
            )
        )
        self._daemon("slurmctld", "-c")
        for number in range(1, self.num_nodes + 1):
            self.start_daemon(f"node{number}")
        wait_for(lambda: set(self.nodes().values()) == {"idle"}, "idle nodes")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run("scancel", "--user", "root", "--signal", "KILL", "--full")
        self.run("scontrol", "shutdown")
        for path in self.folder.glob("*.pid"):
            end_by_pid_file(path)
        end_by_pid_file(self.folder / "munge/munged.pid")

    def run(self, *command: str | Path, **environment: str) -> str:
        """What a command says, whether it succeeds or not."""
        end = subprocess.run(
            [str(word) for word in command],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return end.stdout + end.stderr

    def nodes(self) -> dict[str, str]:
        """Each node's state."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").splitlines())

    def start_daemon(self, node: str) -> None:
        """That of a node."""
        self._daemon("slurmd", "-N", node)

    def kill_daemon(self, node: str) -> None:
        """SIGKILL to that of a node."""
        os.kill(int((self.folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def hosts(self, nodes: str) -> list[str]:
        """The names behind a list as node[1-2,4]."""
        return self.run("scontrol", "show", "hostnames", nodes).split()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol tells of a job; empty where it does not know it."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number, "-o")))

    def state(self, number: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..., of a job."""
        for _ in range(20):
            job = self.job(number)
            if job:
                return job["JobState"]
            time.sleep(0.5)  # the controller is busy
        raise TimeoutError(f"scontrol tells nothing of job {number}")

    def is_on_nodes(self, number: str) -> bool:
        """Whether a node still has to do with a job, as one that has been requeued."""
        return any(f"slurmstepd: [{number}." in " ".join(words_of(pid)) for pid in find_processes())

    def start_now(self, number: str) -> None:
        """SLURM lets a job that was requeued wait for two minutes."""
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def signal_before_preemption(self) -> None:
        """From here on a job that asks for a signal before its time limit gets it before preemption, too."""
        with (self.folder / "slurm.conf").open("a") as file:
            file.write("SlurmctldParameters=preempt_send_user_signal\n")
        self.run("scontrol", "reconfigure")

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        key = munge / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
        names = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}
        self._daemon(
            "munged",
            "--force",
            *(f"--{what}-file={munge / name}" for what, name in names.items() if what != "socket"),
            f"--socket={munge / 'munge.socket'}",
        )
        wait_for((munge / "munge.socket").exists, "munged to listen")

    def _daemon(self, *command: str) -> None:
        """Start what goes to the background by itself."""
        end = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if end.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {end.returncode}: {end.stderr.strip()}")


def end_by_pid_file(path: Path) -> None:
    """SIGTERM to the process of a pid file, if there is one."""
    with suppress(OSError, ValueError):
        os.kill(int(path.read_text()), 15)
