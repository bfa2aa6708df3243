"""What the hardware counts while our kernels run on a real pack, by NVIDIA's own profiler."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from oneflow_dist.config import Config, load_config, write_config
from tools.benchmark.contest import Call
from tools.benchmark.kernels import all_cases
from tools.benchmark.link import Link
from tools.benchmark.schedule import Line

SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats")
KEPT = (
    "Duration",
    "Compute (SM) Throughput",
    "Memory Throughput",
    "DRAM Throughput",
    "Achieved Occupancy",
    "Theoretical Occupancy",
    "Registers Per Thread",
    "Dynamic Shared Memory Per Block",
)
MICROSECONDS = {"n": 1e-3, "u": 1.0, "m": 1e3, "s": 1e6}  # by the first letter: "us", of older versions "usecond"


def measure_counters(config: Config, link: Link, device: torch.device) -> None:
    """Of each of our kernels in the bag loss and in attention, the slowest first."""
    for call in our_calls(config, device):
        call()  # so that under the profiler nothing is compiled
    link.ready()
    for line in counted(config, kernel_names()):
        link.tell("counters", **line)


def our_calls(config: Config, device: torch.device) -> Iterator[Call]:
    """The bag loss and attention of a real pack, with gradients."""
    for case in all_cases(config, device):
        if "real pack" in case.name:
            (ours,) = (contender for contender in case.contenders if contender.is_ours)
            yield ours.prepare(case.make_inputs(0))


def kernel_names() -> set[str]:
    """Of our kernels, as the profiler calls them."""
    from oneflow_kernels.variants import all_variants  # here: it needs Triton

    return {variant.kernel.__name__ for variant in all_variants()}  # type: ignore[attr-defined]


def counted(config: Config, kernels: set[str]) -> list[Line]:
    """Run this module under `ncu`; a line for each launch of the kernels.

    Raises:
        RuntimeError: the profiler has counted nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(write_config(config))
        options = [option for section in SECTIONS for option in ("--section", section)]
        names = f"regex:^({'|'.join(sorted(kernels))})"
        command = ["ncu", "--csv", "--clock-control", "none", *options, "--kernel-name", names]
        program = [sys.executable, "-m", "tools.benchmark.counters", str(path)]
        end = subprocess.run([*command, *program], capture_output=True, text=True, check=False)
    lines = read_counters(end.stdout.splitlines())
    if not lines:
        *_, last = (end.stdout + end.stderr).strip().splitlines() or ["nothing"]
        raise RuntimeError(f"ncu ended with code {end.returncode} and counted nothing; it said: {last}")
    return lines


def read_counters(output: Sequence[str]) -> list[Line]:
    """The profiler's table, in which each counter of a launch has a row of its own, and lines of other things."""
    launches: dict[str, Line] = {}
    for row in csv.DictReader(line for line in output if line.startswith('"')):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "microseconds": 0.0, "counters": {}})
        name, value, unit = row["Metric Name"], row["Metric Value"], row["Metric Unit"]
        if name in KEPT:
            launch["counters"][name] = f"{value} {unit}".strip()
        if name == "Duration":
            launch["microseconds"] = float(value.replace(",", "")) * MICROSECONDS[unit[0]]
    return sorted(launches.values(), key=lambda line: -line["microseconds"])


def main() -> None:
    """Entry point: run our kernels once, for a profiler to look at."""
    for call in our_calls(load_config(sys.argv[1], []), torch.device("cuda")):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
