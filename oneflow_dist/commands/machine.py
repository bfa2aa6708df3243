"""What this machine does and what limits a process on it: products, disk, control groups, interfaces."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIB = 2**20
PROBE_BYTES = 64 * MIB  # written to and read from the disk
PROBE_SECONDS = 2.0  # at most, of writing
PRODUCT_SECONDS = 0.4
CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@cache
def torch_problem() -> str:
    """Why torch cannot be loaded; "" where it can."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # the latter where a library of it is missing
        return " ".join(str(error).split())
    return ""


@cache
def product_rates() -> dict[str, float]:
    """FLOPs per second of matrix products on the first device, for a moment, by precision."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates, n = {}, 8192 if device.type == "cuda" else 1024
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        a = torch.randn(n, n, device=device).to(dtype)
        torch.mm(a, a)[0, 0].item()  # waits for the device
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < PRODUCT_SECONDS:
            torch.mm(a, a)[0, 0].item()
            count += 1
        rates[name] = 2.0 * n**3 * count / (time.perf_counter() - start)
    return rates


def _control_groups() -> Iterator[Path]:
    """The folders that limit this process: its control groups and those above them, of version 2 and 1."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []:
        _, controllers, place = line.split(":", 2)
        folder = Path(place.lstrip("/"))
        yield from (CGROUPS / controllers / each for each in (folder, *folder.parents))


def core_limits() -> Iterator[float]:
    """How many cores each of its control groups leaves to this process, where one has a limit."""
    for folder in _control_groups():
        new, old = folder / "cpu.max", (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        parts = new.read_text().split() if new.is_file() else [f.read_text().strip() for f in old if f.is_file()]
        if len(parts) == 2 and parts[0].isdigit():  # else "max" or -1: no limit
            yield int(parts[0]) / int(parts[1])


def memory_limits() -> Iterator[float]:
    """Bytes, likewise."""
    for folder in _control_groups():
        for path in (folder / "memory.max", folder / "memory.limit_in_bytes"):
            if path.is_file() and (text := path.read_text().strip()).isdigit():
                yield float(text)


def has_nccl_interface(chosen: list[str], names: list[str]) -> bool:
    """Whether NCCL finds one of the interfaces that NCCL_SOCKET_IFNAME chooses.

    Words are beginnings of names; after "=" whole names, after "^" those that are not taken.
    """
    rule = chosen[0][: len(chosen[0]) - len(chosen[0].lstrip("^="))]
    words = (chosen[0].lstrip("^="), *chosen[1:])
    found = [name for name in names if (name in words if "=" in rule else name.startswith(words))]
    return len(found) < len(names) if "^" in rule else bool(found)


def disk_rates(folder: Path) -> tuple[float, float]:
    """Bytes a second that go to a disk and come back from it, as far as the system lets go of what it remembers.

    Raises:
        OSError: nothing can be written there.
    """
    part, num_bytes, start = os.urandom(MIB) * 8, 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while num_bytes < PROBE_BYTES and time.perf_counter() - start < PROBE_SECONDS:
            num_bytes += file.write(part)
            os.fdatasync(file.fileno())
        written = num_bytes / (time.perf_counter() - start)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(MIB):
            pass
        return written, num_bytes / (time.perf_counter() - start)
