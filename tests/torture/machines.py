"""Do the tests hold on other machines? Runs them as if on other CPUs, and prints a table of what passes.

    python tests/torture/machines.py                                    # every machine, all tests that compare numbers
    python tests/torture/machines.py --machine AVX2 -- tests/model -k gradient

Libraries of numbers choose code by what the CPU has, and each sums in its own order; environment variables make them
choose as on another. The table grows by a row after each run; pytest's own output goes to a log beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from oneflow_dist.runtime import run_program

ROOT = Path(__file__).parents[2]
NUMERIC = ["flow", "kernels", "model", "parallel", "data/test_latents.py", "tools/test_export.py"]
NUMERIC += ["precompute/test_encoder.py"]
NUMERIC += [f"test_{name}.py" for name in ("canvas", "optim", "resume", "sampler", "train")]
NO_NUMBERS = "tests/kernels/test_resources.py"  # compiles for minutes, compares nothing

ONE_THREAD = {"ONEFLOW_TEST_THREADS": "1", "OMP_NUM_THREADS": "1"}  # the latter reaches numpy in the tests' process
TWO_THREADS = {"ONEFLOW_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"}
TWO_THREADS |= {"OMP_WAIT_POLICY": "PASSIVE"}  # ranks share the cores: a thread that waits must not hold one


def instructions(torch: str, onednn: str, openblas: str, mkl: str) -> dict[str, str]:
    """Who computes what: torch's own kernels, convolutions and bf16 products, numpy's products, torch's products."""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "MKL_CBWR")
    return dict(zip(names, (torch, onednn, openblas, mkl), strict=True))


# Of MKL's choices AVX2 and AVX512 are heard on Intel's CPUs alone; COMPATIBLE, its order for every maker's, everywhere.
MACHINES = {
    "this machine": ONE_THREAD,
    "this machine, 2 threads": TWO_THREADS,
    "a CPU before AVX": ONE_THREAD | instructions("default", "SSE41", "Nehalem", "COMPATIBLE"),
    "AVX2": ONE_THREAD | instructions("avx2", "AVX2", "Haswell", "AVX2"),
    "AVX2, another maker's, 2 threads": TWO_THREADS | instructions("avx2", "AVX2", "Haswell", "COMPATIBLE"),
    "AVX-512 without bf16": ONE_THREAD | instructions("avx512", "AVX512_CORE", "SkylakeX", "COMPATIBLE"),
}
NEEDS = {"avx2": "avx2", "avx512": "avx512f"}  # flags of the CPU, without which torch's kernels for it crash
HEAD = "| stands in for | passed | failed | seconds | failures |\n| --- | --- | --- | --- | --- |"


def main() -> None:
    """Entry point; code 1 if a test fails on a machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="for pytest, after -- with its options (all that compare numbers)")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("runs/stand_in_machines.md"), help="(%(default)s)")
    parser.add_argument("--workers", default="0", help="of pytest-xdist (%(default)s: pytest alone)")
    args = parser.parse_args()
    tests = args.tests or [f"--ignore={NO_NUMBERS}", *(f"tests/{name}" for name in NUMERIC)]
    cpu = read_cpu()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    note(f"{cpu['model name']}, {os.cpu_count()} cores\n\n{HEAD}", args.output)
    num_bad = 0
    for name in args.machine or MACHINES:
        flag = NEEDS.get(MACHINES[name].get("ATEN_CPU_CAPABILITY", ""))
        if flag is not None and flag not in cpu["flags"].split():
            note(f"| {name} | | | | not run: this CPU has no {flag} |", args.output)
            continue
        passed, bad, seconds = run_tests(MACHINES[name], [*tests, "-n", args.workers], args.output.with_suffix(".log"))
        note(f"| {name} | {passed} | {len(bad)} | {seconds:.0f} | {', '.join(bad)} |", args.output)
        num_bad += len(bad)
    sys.exit(num_bad > 0)


def read_cpu() -> dict[str, str]:
    """What /proc/cpuinfo says of the first CPU."""
    first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def note(line: str, path: Path) -> None:
    """Print, and append to the file."""
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def run_tests(machine: dict[str, str], arguments: list[str], log: Path) -> tuple[int, list[str], float]:
    """How many tests passed, the names of those that did not, and the seconds that all took."""
    variables = {name for settings in MACHINES.values() for name in settings}
    env = {name: value for name, value in os.environ.items() if name not in variables} | machine
    with tempfile.TemporaryDirectory() as folder, log.open("a") as output:
        env["TMPDIR"] = folder  # compilers' caches are there, which do not ask for whom their code was made
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env=env, stdout=output, stderr=output, check=False).returncode
        seconds = time.monotonic() - start
        if code not in (0, 1):  # no test at all, an argument that pytest does not know, a crash
            raise ValueError(f"pytest ended with code {code}; see the end of {log}")
        cases = list(ET.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}" for case in bad]
    return len(cases) - len(bad) - len(skipped), names, seconds


if __name__ == "__main__":
    run_program(main)
