"""Send signals to a run of two ranks with two data workers each: is it saved, and does nothing stay behind?

    python tests/torture/signals.py scratch                                             all sixty cells, ten minutes
    python tests/torture/signals.py scratch --signals SIGTERM --receivers rank worker --moments step

Each cell is a run of configs/debug.toml by torchrun, in a folder of `scratch` that is made for it. The table says how
it ended: "saved" means that a checkpoint of its last step is complete and that nothing was wrong; the number after it
is torchrun's exit code, which is never 0 for a signal to itself.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.progress import complete_steps
from oneflow_dist.runtime import run_program
from tests.processes import children, is_alive, wait_until

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGKILL")
RECEIVERS = ("group", "agent", "rank", "worker")
MOMENTS = ("start", "step", "save")
PATIENCE = 120.0  # seconds, for a run to come to a moment, and to end
# A model that is slow enough to save that a signal finds it at it.
RUN = (
    *(
        "data.workers=2",
        "train.steps=1000000",
        "checkpoint.every_steps=5",
        "checkpoint.keep=2",
        "sampling.every_steps=0",
    ),
    *("model.width=512", "model.num_layers=4", "model.mlp_width=1024"),
)
LINE = re.compile(r"(?:error(?: \(rank \d+\))?: |rank \d+: |stopped by \w+ before).*")  # a bar may stand before it


@dataclass(frozen=True, slots=True)
class Processes:
    """Of one run, as /proc has them."""

    agent: int
    ranks: list[int]
    workers: list[int]

    def receivers(self, kind: str) -> list[int]:
        """Who gets the signal; of several ranks the last, which is not the one that speaks for all."""
        chosen = {"agent": [self.agent], "rank": self.ranks[-1:], "worker": self.workers[-1:]}
        return chosen.get(kind, [self.agent, *self.ranks, *self.workers])


@dataclass(frozen=True, slots=True)
class Cell:
    """One run, one signal."""

    number: str
    receiver: str
    moment: str

    @property
    def name(self) -> str:
        return f"{self.number}-{self.receiver}-{self.moment}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for the runs; it must not exist")
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS)
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=RECEIVERS)
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="for every run")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True)
    cells = [Cell(n, r, m) for m in args.moments for r in args.receivers for n in args.signals]
    bad = 0
    for place, cell in enumerate(cells, start=1):
        start = time.monotonic()
        verdict, is_good = run_cell(cell, args.scratch / cell.name, args.set)
        bad += not is_good
        seconds = f"{time.monotonic() - start:.0f} s"
        mark = "" if is_good else "WRONG: "
        print(
            f"{place:3}/{len(cells)} {cell.number:8} {cell.receiver:7} {cell.moment:6} {mark}{verdict}, {seconds}",
            flush=True,
        )
    if bad:
        raise ValueError(f"{args.scratch}: {bad} of {len(cells)} cells ended otherwise than they should, see above")
    print(f"all {len(cells)} ended as they should")


def run_cell(cell: Cell, folder: Path, overrides: list[str]) -> tuple[str, bool]:
    """What happened in a cell, and whether that is right."""
    folder.mkdir()
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "oneflow_dist.train"]
    words += ["configs/debug.toml", f"run.folder={folder / 'run'}", *RUN, *overrides]
    with (folder / "output").open("w") as output:
        agent = subprocess.Popen([sys.executable, *words], stdout=output, stderr=output)
    try:
        processes = reach(cell, agent.pid, folder)
        for pid in processes.receivers(cell.receiver):
            os.kill(pid, signal.Signals[cell.number])
        if cell.receiver == "worker" and cell.number != "SIGKILL":  # it ignores that; the run goes on until it is asked
            before = num_lines(folder)
            wait_until(lambda: num_lines(folder) >= before + 3, "the run to go on", PATIENCE)
            os.kill(processes.ranks[0], signal.SIGTERM)
        code = agent.wait(PATIENCE)
        others = [*processes.ranks, *processes.workers]
        wait_until(lambda: not any(map(is_alive, others)), "ranks and workers to end", PATIENCE)
    finally:
        kill_all(agent)
    return judge(cell, folder, code)


def reach(cell: Cell, agent: int, folder: Path) -> Processes:
    """The processes of a run at the moment of a cell."""
    saves = folder / "run/checkpoints"
    num_workers = 4 if cell.moment != "start" or cell.receiver == "worker" else 0

    def is_there() -> bool:
        if cell.moment == "step":
            return num_lines(folder) >= 3
        if cell.moment == "save":
            return any(saves.glob("*.incomplete"))
        return True

    def find() -> Processes | None:
        ranks = [pid for pid in children(agent) if listens(pid)]
        workers = [pid for rank in ranks for pid in children(rank)]
        return Processes(agent, ranks, workers) if len(ranks) == 2 and len(workers) >= num_workers else None

    wait_until(lambda: find() is not None, "ranks and workers to start", PATIENCE)
    wait_until(is_there, f"the moment {cell.moment!r}", PATIENCE, pause=0.001)
    found = find()
    if found is None:
        raise ValueError(f"{folder}: ranks have ended by themselves; see {folder / 'output'}")
    return found


def judge(cell: Cell, folder: Path, code: int) -> tuple[str, bool]:
    """How a run ended, in words, and whether it should have."""
    output = (folder / "output").read_text()
    steps, saved = num_lines(folder), complete_steps(str(folder / "run"))
    said = sorted(set(LINE.findall(output)))
    is_clean = "[rank" not in output  # torch's mark of a traceback of ours; torchrun's own has none
    torn = [path for path in (folder / "run/checkpoints").glob("step-*") if path.suffix != ".incomplete"]
    is_clean &= len(torn) == len(saved)
    is_murder = cell.number == "SIGKILL" and cell.receiver != "agent"  # of one whom the others cannot do without
    must_save = not is_murder and (cell.moment != "start" or cell.receiver == "worker")
    if must_save or (not said and steps in saved):
        return f"saved after step {steps}, torchrun {code}", is_clean and steps > 0 and steps in saved and not said
    what = said[0] if said else "nothing was said"
    speaks = 0 < len(said) <= 2 or (is_murder and cell.receiver == "group")
    return f"{what[:150]} ({len(said)} lines), torchrun {code}", is_clean and speaks


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, as a rank has from its first instant on."""
    try:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    bit = 1 << (signal.SIGTERM - 1)
    return caught is not None and bool(int(caught[1], 16) & bit) and b"torch.distributed.run" not in words


def num_lines(folder: Path) -> int:
    """Steps that a run has made."""
    path = folder / "run/metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_all(agent: subprocess.Popen[bytes]) -> None:
    """What a cell that went wrong has left."""
    tree = [agent.pid]
    for pid in tree:
        tree += children(pid)
    for pid in tree[1:] if agent.poll() is not None else tree:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    run_program(main)
