"""What this machine has, which paths are slow on it, and why: devices, kernels, memory, disk, settings, packages.

The exit code is 1 where training cannot work at all; slow is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    from oneflow_dist.config import Config

State = Literal["ok", "slow", "missing", "broken"]
GIB, MIB = 2**30, 2**20
PROBE_BYTES = 64 * MIB  # written to and read from the disk
LEAST_SHARED = 1 * GIB  # of /dev/shm: data workers and NCCL
LEAST_FILES = 4096  # that may be open: two for each shard
SLOW_DISK = 200 * MIB  # a second
VARIABLES = {  # that change speed or results, and what of them
    "OMP_NUM_THREADS": "threads of every process; unset, ranks share the cores",
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for: many times slower, for debugging alone",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are for this shell",
    "ONEFLOW_KERNELS": "which kernels run, whatever the device",
    "TRITON_INTERPRET": "Triton's kernels run in Python: thousands of times slower, for tests alone",
    "NCCL_SOCKET_IFNAME": "the network of NCCL",
    "GLOO_SOCKET_IFNAME": "the network of gloo",
    "PYTORCH_CUDA_ALLOC_CONF": "how torch keeps a GPU's memory",
}
HARMFUL = ("CUDA_LAUNCH_BLOCKING", "TRITON_INTERPRET")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    says: str
    advice: str = ""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="a TOML file or a run folder: can this machine train it?")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_intermixed_args()
    config = read_asked(args.config, args.overrides) if args.config else None
    findings = [finding for check in CHECKS for finding in check()]
    findings += check_run(config) if config else []
    print(json.dumps([asdict(finding) for finding in findings], indent=1) if args.json else describe(findings))
    sys.exit(any(finding.state == "broken" for finding in findings))


def read_asked(path: Path, overrides: list[str]) -> Config:
    """The config of a file, or of a run folder."""
    from oneflow_dist.config import load_config

    return load_config(str(path / "config.toml" if path.is_dir() else path), overrides)


def describe(findings: list[Finding]) -> str:
    """A line each; what is slow, missing or broken with what to do below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8}{finding.name:<{width}}  {finding.says}")
        lines += [f"{'':8}{'':{width}}  -> {finding.advice}"] if finding.advice else []
    counts = [f"{sum(f.state == state for f in findings)} {state}" for state in ("ok", "slow", "missing", "broken")]
    return "\n".join([*lines, ", ".join(counts)])


def check_software() -> Iterator[Finding]:
    """Python, torch and what it was built for, Triton, NCCL."""
    import torch

    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    gpus_seen = shutil.which("nvidia-smi") is not None
    if gpus_seen and not torch.cuda.is_available():
        advice = "install the torch of your CUDA, see requirements.lock" if build == "CPU" else "update the driver"
        yield Finding(
            "torch", "slow", f"{torch.__version__} for {build}, which sees no GPU, though nvidia-smi is here", advice
        )
    else:
        yield Finding("torch", "ok", f"{torch.__version__}, built for {build}")
    try:
        yield Finding("triton", "ok", version("triton"))
    except PackageNotFoundError:
        yield Finding("triton", "missing", "its kernels cannot run", "pip install triton, on Linux and x86-64")
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding("NCCL", "ok", nccl)


def check_devices() -> Iterator[Finding]:
    """GPUs, and which kernels and attention run on them."""
    import torch

    from oneflow_dist.planning.gpus import peak_flops

    if not torch.cuda.is_available():
        says = "none: the plain definitions of all kernels run on the CPU"
        yield Finding("GPU", "slow", says, "enough for the quickstart; for more take a machine with a GPU")
        return
    from oneflow_kernels.flash_attention import choose

    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        peak = peak_flops(about.name)
        says = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute {about.major}.{about.minor}"
        says += f", {peak / 1e12:.0f} TFLOP/s in bf16 by its vendor" if peak else ""
        advice = "a part of a GPU: NCCL cannot use several on one card" if "MIG" in about.name else ""
        yield Finding(f"GPU {number}", "slow" if advice or about.major < 8 else "ok", says, advice)
        fastest = choose(about.major)
        if number == 0 and fastest:
            yield Finding("attention", "ok", f"{fastest}, where rows see all of their document")
        elif number == 0:
            yield Finding("attention", "ok", "torch's varlen flash attention, and the Triton kernel")


def check_speed() -> Iterator[Finding]:
    """Matrix products of the device, for a moment."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024, device=device).to(dtype)
        torch.mm(a, a)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.4:
            torch.mm(a, a)
            if device.type == "cuda":
                torch.cuda.synchronize()
            count += 1
        rates[dtype] = 2.0 * 1024**3 * count / (time.perf_counter() - start) / 1e9
    says = f"{rates[torch.float32]:,.0f} GFLOP/s in fp32, {rates[torch.bfloat16]:,.0f} in bf16, products of 1,024"
    if device.type == "cpu" and rates[torch.bfloat16] < rates[torch.float32]:
        yield Finding("products", "slow", says, 'this CPU has no unit for bf16: leave train.precision = "fp32"')
    else:
        yield Finding("products", "ok", says)


def check_cores() -> Iterator[Finding]:
    """Cores and memory, as far as this process may have them."""
    allowed, limit = len(os.sched_getaffinity(0)), _cgroup("cpu.max")
    quota = limit.split() if limit else ["max"]
    cores = allowed if quota[0] == "max" else min(allowed, int(quota[0]) / int(quota[1]))
    says = f"{cores:g} of {os.cpu_count()} for this process"
    if cores < allowed:
        advice = f"OMP_NUM_THREADS={max(1, int(cores))}: threads that the container's limit stops hold up all others"
        yield Finding("cores", "slow", says, advice)
    else:
        yield Finding("cores", "ok", says)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = _cgroup("memory.max")
    says = f"{available / GIB:.1f} GiB free" + (f", of at most {int(most) / GIB:.1f}" if most.isdigit() else "")
    yield Finding("memory", "ok", says)


def check_room() -> Iterator[Finding]:
    """Shared memory, disk, files that may be open."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        advice = "" if free >= LEAST_SHARED else "start the container with --shm-size=8g, or set data.workers = 0"
        yield Finding("/dev/shm", "slow" if advice else "ok", f"{free / GIB:.1f} GiB free", advice)
    here = Path.cwd()
    free, (written, read) = shutil.disk_usage(here).free, disk_rates(here)
    says = f"{free / GIB:.0f} GiB free at {here}, {written / MIB:.0f} MiB/s written, {read / MIB:.0f} MiB/s read"
    advice = "checkpoints and shards want a local disk" if written < SLOW_DISK else ""
    yield Finding("disk", "slow" if advice else "ok", says, advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if hard >= LEAST_FILES else f"ulimit -n {LEAST_FILES}, as root or in limits.conf"
    yield Finding("open files", "slow" if advice else "ok", f"{soft}, {hard} if asked for", advice)


def check_network() -> Iterator[Finding]:
    """Interfaces, and whether the one that was chosen is there."""
    names = [name for _, name in socket.if_nameindex()]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        own = os.environ.get(variable, "").lstrip("^=")
        if own and not any(name.startswith(part) for part in own.split(",") for name in names):
            yield Finding("network", "broken", f"{variable} is {own}, but there are {', '.join(names)}", "unset it")
            return
    yield Finding("network", "ok", ", ".join(names))


def check_variables() -> Iterator[Finding]:
    """Settings of the environment that change speed or results."""
    for name, what in VARIABLES.items():
        if name in os.environ:
            is_harmful = name in HARMFUL and os.environ[name] not in ("", "0")
            advice = f"unset {name}" if is_harmful else ""
            yield Finding(name, "slow" if is_harmful else "ok", f"{os.environ[name]}: {what}", advice)


def check_packages() -> Iterator[Finding]:
    """Extras of the project, all of whose packages are here, or not."""
    own = requires("oneflow_dist") or []
    for extra in metadata("oneflow_dist").get_all("Provides-Extra") or []:
        names = [re.split(r"[^\w.-]", line)[0] for line in own if re.search(rf"extra == .{extra}\W", line)]
        absent = [name for name in names if not _is_installed(name)]
        if absent:
            says = f"without {', '.join(absent)}"
            yield Finding(f"extra {extra}", "missing", says, f"pip install -e '.[{extra}]', if you need it")
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(names))


def check_run(config: Config) -> Iterator[Finding]:
    """What of a run this machine cannot do, or not well."""
    import torch

    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.data.shards import list_shards
    from oneflow_dist.data.tokenizer import load_tokenizer

    def shards() -> str:
        sources = load_mixture(config.data.mixture)
        return f"{sum(len(list_shards(s.name, s.shards)) for s in sources)} shards of {len(sources)} sources"

    looks: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: f"{load_tokenizer(config.data.tokenizer, config.modality).vocab_size} tokens",
        "data": shards,
    }
    for name, look in looks.items():
        try:
            yield Finding(name, "ok", look())
        except (ValueError, OSError) as error:
            yield Finding(name, "broken", str(error))
    devices = torch.cuda.device_count() or 1
    if config.parallel.tensor > devices:
        says = f"parallel.tensor is {config.parallel.tensor}, but there are {devices} devices here"
        yield Finding("layout", "slow", says, "a tensor axis over several nodes waits for their network")
    if config.train.precision != "fp32" and not torch.cuda.is_available():
        says = f'train.precision is "{config.train.precision}", and there is no GPU'
        yield Finding("precision", "slow", says, "train.precision=fp32, unless products above say otherwise")


def disk_rates(folder: Path) -> tuple[float, float]:
    """Bytes a second that go to the disk and come back; the latter perhaps from memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(os.urandom(MIB) * (PROBE_BYTES // MIB))
        file.flush()
        os.fsync(file.fileno())
        middle = time.perf_counter()
        file.seek(0)
        while file.read(MIB):
            pass
        return PROBE_BYTES / (middle - start), PROBE_BYTES / (time.perf_counter() - middle)


def _cgroup(name: str) -> str:
    path = Path("/sys/fs/cgroup", name)
    return path.read_text().strip() if path.is_file() else ""


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(check_software, check_devices, check_speed, check_cores, check_room, check_network),
    *(check_variables, check_packages),
)

if __name__ == "__main__":
    run_program(main)
