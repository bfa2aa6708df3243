"""What this machine has, which paths are slow on it, and why: devices, kernels, memory, disk, settings, packages.

The exit code is 1 where training cannot work at all; slow is no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from oneflow_dist.commands.machine import (
    MIB,
    core_limits,
    disk_rates,
    has_nccl_interface,
    memory_limits,
    product_rates,
    torch_problem,
)
from oneflow_dist.extras import install
from oneflow_dist.files import folder_there, free_bytes
from oneflow_dist.readiness import (
    SHARED_MEMORY,
    SHARED_MEMORY_ADVICE,
    SHARED_MEMORY_MIB,
    check_mixture,
    check_tokenizer,
    free_shared_memory,
)
from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    from oneflow_dist.config import Config

State = Literal["ok", "slow", "missing", "broken"]
GIB = 2**30
LEAST_FILES = 4096  # that may be open: two for each shard
SLOW_DISK = 100 * MIB  # a second
SLOW_PRODUCTS = 0.4  # of the vendor's rate
MEMORY, DRIVER = Path("/proc/meminfo"), Path("/proc/driver/nvidia/version")
VARIABLES = {  # that change speed or results, and what of them
    "OMP_NUM_THREADS": "threads of every process; unset, ranks share the cores",
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for: many times slower, for debugging alone",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are for this shell",
    "ONEFLOW_KERNELS": "which kernels run, whatever the device",
    "TRITON_INTERPRET": "Triton's kernels run in Python: thousands of times slower, for tests alone",
    "TORCHDYNAMO_DISABLE": "train.compile has no effect",
    "NVIDIA_TF32_OVERRIDE": "whether products of fp32 are rounded further",
    "NCCL_P2P_DISABLE": "GPUs of a node talk through the host's memory",
    "NCCL_IB_DISABLE": "nodes talk through sockets",
    "NCCL_SOCKET_IFNAME": "the network of NCCL",
    "GLOO_SOCKET_IFNAME": "the network of gloo",
    "PYTORCH_ALLOC_CONF": "how torch keeps a GPU's memory",
    "PYTORCH_CUDA_ALLOC_CONF": "how torch keeps a GPU's memory",
}
# Unless they are 0; and ONEFLOW_KERNELS where it is "reference".
HARMFUL = ("CUDA_LAUNCH_BLOCKING", "TRITON_INTERPRET", "TORCHDYNAMO_DISABLE", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")


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
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    if torch_problem():
        yield Finding("torch", "broken", f"cannot be loaded: {torch_problem()}", "install what requirements.lock names")
        return
    import torch

    has_gpu = torch.cuda.is_available()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    build = build if torch.version.cuda or torch.version.hip else "CPU"
    if shutil.which("nvidia-smi") is not None and not has_gpu:
        advice = "install the torch of your CUDA, see requirements.lock" if build == "CPU" else "update the driver"
        says = f"{torch.__version__} for {build}, which sees no GPU, though nvidia-smi is here"
        yield Finding("torch", "slow", says, advice)
    else:
        yield Finding("torch", "ok", f"{torch.__version__}, built for {build}")
    if _is_installed("triton"):
        yield Finding("triton", "ok", version("triton"))
    else:
        advice = "pip install triton, on Linux and x86-64"
        yield Finding("triton", "broken" if has_gpu else "missing", "kernels for GPUs cannot run", advice)
    if has_gpu:
        driver = re.search(r"\d+(?:\.\d+)+", DRIVER.read_text()) if DRIVER.is_file() else None
        says = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding("NCCL", "ok", says + (f"; driver {driver[0]}" if driver else ""))


def check_devices() -> Iterator[Finding]:
    """GPUs, and which kernels and attention run on them."""
    if torch_problem():
        return
    import torch

    from oneflow_dist.planning.gpus import peak_flops

    if not torch.cuda.is_available():
        says = "none: the plain definitions of all kernels, attention too, run on the CPU"
        yield Finding("GPU", "slow", says, "enough for the quickstart; for more take a machine with a GPU")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        peak = peak_flops(about.name)
        says = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute {about.major}.{about.minor}"
        says += f", {peak / 1e12:.0f} TFLOP/s in bf16 by its vendor" if peak else ""
        advice = "a part of a GPU: NCCL cannot use several on one card" if "MIG" in about.name else ""
        if about.major < 8:
            advice = 'it has no products in bf16: set train.precision = "fp32"'
        yield Finding(f"GPU {number}", "slow" if advice else "ok", says, advice)
    yield from check_kernels()


def check_kernels() -> Iterator[Finding]:
    """What computes attention on the first GPU, and whether launches of our kernels were tuned for it."""
    import torch

    from oneflow_kernels.flash_attention import INTERFACES
    from oneflow_kernels.launches import TUNED, tuned_file
    from oneflow_kernels.packed_attention import FLASH, fastest

    name, is_nvidia = torch.cuda.get_device_name(0), torch.version.hip is None
    major = torch.cuda.get_device_capability(0)[0] if is_nvidia else 0
    chosen = fastest(major, 64)
    there = [f"{own} is {'' if _is_installed(each.package) else 'not '}installed" for own, each in INTERFACES.items()]
    says = f"{chosen}, for heads of 64 where rows see all of their document; {', '.join(there)}"
    if chosen == FLASH and not torch.backends.cuda.is_flash_attention_available():
        advice = "set ONEFLOW_KERNELS=triton, or install another build of torch"
        yield Finding("attention", "missing", f"{says}; this torch was built without flash attention", advice)
    elif any(major in each.majors for each in INTERFACES.values()) and chosen == FLASH:
        yield Finding("attention", "slow", says, "pip install flash-attn-4, see docs/kernels.md")
    else:
        yield Finding("attention", "ok", says)
    is_tuned = tuned_file(TUNED, name).exists()
    says = f"{'' if is_tuned else 'not '}tuned for {name}"
    yield Finding("kernels", "ok" if is_tuned else "slow", says, "" if is_tuned else "python -m oneflow_kernels.tune")


def check_speed() -> Iterator[Finding]:
    """Matrix products of the device, beside each other and beside what its vendor says."""
    if torch_problem():
        return
    import torch

    from oneflow_dist.planning.gpus import peak_flops

    rates = product_rates()
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    says = f"{rates['fp32'] / 1e9:,.0f} GFLOP/s in fp32, {rates['bf16'] / 1e9:,.0f} in bf16"
    peak = peak_flops(name) or 0.0
    if "MIG" not in name and rates["bf16"] < SLOW_PRODUCTS * peak:
        advice = "is somebody else on it, or are its clocks lowered? nvidia-smi -q -d PERFORMANCE"
        yield Finding("products", "slow", f"{says}, of {peak / 1e9:,.0f} by its vendor", advice)
    elif rates["bf16"] < rates["fp32"]:
        yield Finding("products", "slow", says, 'bf16 gains nothing here: set train.precision = "fp32"')
    else:
        yield Finding("products", "ok", says)


def check_cores() -> Iterator[Finding]:
    """Cores and memory, as far as this process may have them."""
    allowed = len(os.sched_getaffinity(0))
    cores = min([allowed, *core_limits()])
    says, threads = f"{cores:g} of {os.cpu_count()} for this process", os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        says += f", and OMP_NUM_THREADS is {threads}"
        yield Finding("cores", "slow", says, "unset it: threads that wait for a core slow all others down")
    elif cores < allowed and not threads:
        advice = f"OMP_NUM_THREADS={max(1, int(cores))}: threads that the container's limit stops hold up all others"
        yield Finding("cores", "slow", says, advice)
    else:
        yield Finding("cores", "ok", says)
    memory = {words[0]: int(words[1]) * 1024 for line in MEMORY.read_text().splitlines() if (words := line.split())}
    limit = min([math.inf, *memory_limits()])
    says = f"{min(memory['MemAvailable:'], limit) / GIB:.1f} GiB free"
    says += f", of at most {limit / GIB:.1f} in this container or job" if limit < memory["MemTotal:"] else ""
    yield Finding("memory", "ok", says)


def check_room() -> Iterator[Finding]:
    """Shared memory, the disk where one stands, files that may be open."""
    if SHARED_MEMORY.is_dir():
        free = free_shared_memory()
        is_enough = free >= SHARED_MEMORY_MIB
        says = f"{free:,} MiB free, of which ranks on GPUs need {SHARED_MEMORY_MIB}"
        advice = "" if is_enough else SHARED_MEMORY_ADVICE
        yield Finding(f"{SHARED_MEMORY}", "ok" if is_enough else "slow", says, advice)
    yield check_disk("disk", Path.cwd())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = hard == resource.RLIM_INFINITY or hard >= LEAST_FILES
    says = f"{soft}, and {'any number' if hard == resource.RLIM_INFINITY else hard} if asked for, as open_shards does"
    advice = "" if is_enough else f"ulimit -n {LEAST_FILES}, as root or in limits.conf"
    yield Finding("open files", "ok" if is_enough else "slow", says, advice)


def check_disk(name: str, folder: Path) -> Finding:
    """Room and speed of the disk that a folder is on, or will be."""
    there = folder_there(folder)
    says = f"{free_bytes(there) / GIB:.0f} GiB free at {there}"
    try:
        written, read = disk_rates(there)
    except OSError as error:
        says = f"{says}, where nothing can be written: {error.strerror}"
        return Finding(name, "missing", says, "go to another folder, or set run.folder")
    advice = "checkpoints and shards want a faster one, on this machine" if written < SLOW_DISK else ""
    says = f"{says}, {written / MIB:,.0f} MiB/s written, {read / MIB:,.0f} MiB/s read"
    return Finding(name, "slow" if advice else "ok", says, advice)


def check_network() -> Iterator[Finding]:
    """Interfaces, and whether those that were chosen are there."""
    names = [name for _, name in socket.if_nameindex()]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        chosen = [word for word in os.environ.get(variable, "").split(",") if word]
        is_gloo = variable.startswith("GLOO")
        if is_gloo and (absent := set(chosen) - set(names)):  # as runtime.py reads it: whole names, all there
            says = f"{variable} is {','.join(chosen)}, but there is no {', '.join(sorted(absent))}"
            yield Finding("network", "broken", says, f"unset it, or take one of {', '.join(names)}")
            return
        if not is_gloo and chosen and not has_nccl_interface(chosen, names):
            says = f"{variable} is {','.join(chosen)}, which none of {', '.join(names)} is"
            yield Finding("network", "slow", says, "unset it: several GPUs cannot start with it")
            return
    yield Finding("network", "ok", ", ".join(names))


def check_variables() -> Iterator[Finding]:
    """Settings of the environment that change speed or results."""
    for name, what in VARIABLES.items():
        if name in os.environ:
            is_harmful = name in HARMFUL and os.environ[name] not in ("", "0")
            is_harmful |= name == "ONEFLOW_KERNELS" and os.environ[name] == "reference"
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
            yield Finding(f"extra {extra}", "missing", says, f"{install(extra)}, if you need it")
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(names))


def check_run(config: Config) -> Iterator[Finding]:
    """What of a run this machine cannot do, or not well."""
    if torch_problem():
        return
    for name, look in looks_at(config).items():
        try:
            yield Finding(name, "ok", look())
        except (ValueError, OSError) as error:
            yield Finding(name, "broken", str(error))
    yield check_disk("run folder", Path(config.run.folder).absolute())
    yield from check_layout(config)
    yield from check_precision(config)


def looks_at(config: Config) -> dict[str, Callable[[], str]]:
    """What a run reads, each with a look at it that raises where it is not there."""

    def folder(path: str) -> str:
        if not Path(path).is_dir():
            raise ValueError(f"{path}: no such folder; make it or name another")
        return path

    looks: dict[str, Callable[[], str]] = {
        "tokenizer": lambda: check_tokenizer(config),
        "data": lambda: check_mixture(config.data.mixture),
    }
    if config.validation.mixture:
        looks["held-out data"] = lambda: check_mixture(config.validation.mixture)
    if config.init.path:
        looks["first weights"] = lambda: folder(config.init.path)
    for name, modality in config.modality.items():
        if modality.has_folder:
            looks[f"codec of {name}"] = lambda path=modality.codec: folder(path)  # type: ignore[misc]
    return looks


def check_layout(config: Config) -> Iterator[Finding]:
    """Axes and workers beside the devices and cores that are here."""
    import torch

    devices, parallel = torch.cuda.device_count() or 1, config.parallel
    shared = parallel.context * parallel.tensor
    least = parallel.replicate * max(1, parallel.shard) * shared
    if shared > devices:
        says = f"parallel.context x tensor is {shared} ranks for a pack, but there are {devices} devices here"
        yield Finding("layout", "slow", says, "ranks that share a pack over several nodes wait for their network")
    elif least > devices:
        says = f"[parallel] asks for {least} ranks at least, but there are {devices} devices here"
        yield Finding("layout", "slow", says, "start it on more nodes, or lower parallel.replicate and parallel.shard")
    cores = len(os.sched_getaffinity(0))
    if config.data.workers * devices >= cores and config.data.workers > 1:
        says = f"data.workers is {config.data.workers} for each of {devices} ranks, on {cores} cores"
        yield Finding("data workers", "slow", says, f"data.workers={max(1, cores // devices - 1)}")
    if config.train.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "gcc", "cc"))):
        yield Finding("compiler", "broken", "train.compile is on, and there is no C++ compiler", "apt-get install g++")


def check_precision(config: Config) -> Iterator[Finding]:
    """Whether the products of a run are those that this device is fast in; measured, since names of CPUs say little."""
    import torch

    from oneflow_kernels.float8 import check_device

    own, device = config.train.precision, "cuda" if torch.cuda.is_available() else "cpu"
    rates = product_rates()
    gain = rates["bf16"] / rates["fp32"]
    try:
        if own == "float8":
            check_device(device)
    except ValueError as error:
        yield Finding("precision", "broken", str(error))
        return
    says = f"train.precision is {own}; products in bf16 are {gain:.2g} times as fast as in fp32 here"
    if own == "float8" and device == "cpu":
        yield Finding("precision", "slow", f"{says}, and a CPU is slow in float8", "train.precision=bf16")
    elif own == "bf16" and gain < 1.0:
        yield Finding("precision", "slow", says, "train.precision=fp32")
    elif own == "fp32" and gain > 1.5 and device == "cuda":
        yield Finding("precision", "slow", says, "train.precision=bf16")
    else:
        yield Finding("precision", "ok", says)


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
