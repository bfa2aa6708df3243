"""The GPUs of a node as nvidia-smi knows them: are they present, idle, cool and without errors?"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from launch.faults import Blame

FIELDS = (
    *("index", "uuid", "driver_version", "memory.used"),
    *("clocks_event_reasons.active", "ecc.errors.uncorrected.volatile.total"),
)
ANSWER_SECONDS = 30.0  # a GPU that hangs keeps nvidia-smi waiting, sometimes for ever
IDLE_MIB = 256  # less than a process holds that has started CUDA
SLOWDOWNS = {  # bits of clocks_event_reasons.active, as in nvml.h; idle and the power cap of a busy GPU are usual
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One row of nvidia-smi; None for what this kind of GPU does not count."""

    index: int
    uuid: str
    driver: str
    used_mib: int | None
    event_reasons: int | None
    ecc_errors: int | None
    broken: str = ""  # the field that has an error for its value, and that error


def query_gpus() -> list[Gpu]:
    """Ask nvidia-smi, once.

    Raises:
        FileNotFoundError: this machine has none.
        ValueError: it failed, took too long, or answered otherwise than it should.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        end = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"nvidia-smi has not answered in {ANSWER_SECONDS:.0f} s: a GPU hangs; reboot the node"
        ) from None
    if end.returncode:
        said = " ".join((end.stdout + end.stderr).split())
        raise ValueError(f"nvidia-smi failed with code {end.returncode}: {said[:300]}; mend or reboot the node")
    return [read_row(line) for line in end.stdout.splitlines() if line.strip()]


def read_row(line: str) -> Gpu:
    """One line of `nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`.

    Raises:
        ValueError: it has other fields than FIELDS.
    """
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(FIELDS) or not values[0].isdigit():
        raise ValueError(f"nvidia-smi: {line!r} does not have the fields {', '.join(FIELDS)}; is it another version?")
    row = dict(zip(FIELDS, values, strict=True))
    broken = [f"{name} is {value}" for name, value in row.items() if _is_error(value)]
    numbers = [None if value.startswith("[") or value == "N/A" else _read_number(value, line) for value in values[3:]]
    return Gpu(
        index=int(row["index"]),
        uuid=row["uuid"],
        driver="" if row["driver_version"] in ("[N/A]", "N/A") else row["driver_version"],
        used_mib=numbers[0],
        event_reasons=numbers[1],
        ecc_errors=numbers[2],
        broken=", ".join(broken),
    )


def _is_error(value: str) -> bool:
    """Whether a value is as "[Unknown Error]" or "[GPU requires reset]"."""
    return value.startswith("[") and value not in ("[N/A]", "[Not Supported]")


def _read_number(value: str, line: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]+|\d+", value):
        raise ValueError(f"nvidia-smi: {value!r} in {line!r} is no number; is it another version?")
    return int(value, 0)


def used_gpus(gpus: Sequence[Gpu], visible: str | None, num_ranks: int) -> list[Gpu]:
    """Those that the ranks of this node will use; others belong to other jobs.

    Args:
        visible: CUDA_VISIBLE_DEVICES: indices, or beginnings of UUIDs; None: it is not set.
    """
    chosen = list(gpus)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        chosen = [
            gpu
            for name in names
            for gpu in gpus
            if (str(gpu.index) == name if name.isdigit() else gpu.uuid.startswith(name))
        ]
    return chosen[:num_ranks]


def gpu_faults(gpu: Gpu) -> list[tuple[str, Blame, str]]:
    """Kind, blame and text of what speaks against a GPU."""
    name = f"GPU {gpu.index}"
    faults: list[tuple[str, Blame, str]] = []
    if gpu.broken:
        text = f"{name}: {gpu.broken}; reset it (nvidia-smi -r -i {gpu.index}) or reboot the node"
        faults.append(("broken GPU", "node", text))
    if gpu.ecc_errors:
        text = f"{name} has {gpu.ecc_errors} uncorrected ECC errors since its driver was loaded"
        advice = f"reset it (nvidia-smi -r -i {gpu.index}), and have it replaced if they come again"
        faults.append(("ECC", "node", f"{text}; {advice}"))
    if gpu.used_mib is not None and gpu.used_mib >= IDLE_MIB:
        text = f"{name} is not idle: {gpu.used_mib} MiB of its memory are taken; end what nvidia-smi shows there"
        faults.append(("busy GPU", "either", text))
    slow = [word for bit, word in SLOWDOWNS.items() if (gpu.event_reasons or 0) & bit]
    if slow:
        text = f"{name} has its clocks lowered by {', '.join(slow)}; look after its cooling and its power"
        faults.append(("clocks of GPUs", "either", text))
    return faults
