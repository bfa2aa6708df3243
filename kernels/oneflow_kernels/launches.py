"""How kernels are launched: the ways that are shipped for each kind of GPU, and the fastest of them on this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEW, OLD, AMD = ("cuda:90", "cuda:100"), ("cuda:80",), ("hip:gfx942",)  # kinds of GPUs that kernels are compiled for
ALL = NEW + OLD + AMD
CPU = ("cpu",)  # Triton's interpreter
TUNED = Path(__file__).parent / "tuned"  # a file for each GPU that `oneflow_kernels.tune` was run on


class Launch(NamedTuple):
    """How a kernel is launched: sizes of its tiles by the names of its constexpr arguments, warps, pipeline stages."""

    tiles: dict[str, int]
    num_warps: int
    num_stages: int

    def run(self, kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: object, **rules: object) -> None:
        """Launch a kernel on the device of `like`; an empty grid computes nothing."""
        if all(grid):
            options = {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages}
            with torch.cuda.device_of(like):
                kernel[grid](*arguments, **rules, **options)

    def __str__(self) -> str:
        tiles = " x ".join(str(size) for size in self.tiles.values())
        return f"{tiles}, {self.num_warps} warps, {self.num_stages} stages"


class Launches(NamedTuple):
    """The ways to launch a kernel, on each kind of GPU that which is probably the fastest first."""

    kernel: str  # such as "attention forward, 2 bytes, wide heads"
    ways: Mapping[str, list[Launch]]  # by target; `on` makes it

    def on_target(self, target: str) -> list[Launch]:
        """All of them; the interpreter takes those of a new GPU if it has none of its own."""
        return self.ways[target if target in self.ways else NEW[0]]

    def best(self, x: Tensor) -> Launch:
        """The fastest on the device of `x`, if `oneflow_kernels.tune` has looked for it there, or else the first."""
        key = self.kernel, x.get_device()
        if key not in chosen:
            ways, known = self.on_target(target_of(x)), tuned(device_name(x)).get(self.kernel)
            chosen[key] = known if known in ways else ways[0]
        return chosen[key]


chosen: dict[tuple[str, int], Launch] = {}  # by kernel and device; so a kernel looks for its launch once


def on(targets: tuple[str, ...], *launches: Launch) -> dict[str, list[Launch]]:
    """The same ways on several kinds of GPUs."""
    return {target: list(launches) for target in targets}


def target_of(x: Tensor) -> str:
    """Of which kind the device of `x` is; a kind that is not compiled for has the launches of the closest one."""
    if not x.is_cuda:
        return CPU[0]
    if torch.version.hip is not None:
        return AMD[0]
    major, _ = torch.cuda.get_device_capability(x.device)
    return {9: "cuda:90", 10: "cuda:100"}.get(major, "cuda:80")  # 12.x has little shared memory, as before 9.0


def device_name(x: Tensor) -> str:
    """Such as "NVIDIA H100 80GB HBM3"."""
    return torch.cuda.get_device_name(x.device) if x.is_cuda else CPU[0]


def tuned_file(folder: Path, device: str) -> Path:
    """Where the fastest launches of a GPU are remembered."""
    return folder / f"{''.join(letter if letter.isalnum() else '-' for letter in device)}.json"


@cache
def tuned(device: str) -> dict[str, Launch]:
    """The fastest launches of a GPU by kernel, as far as they are known."""
    path = tuned_file(TUNED, device)
    found = json.loads(path.read_text())["launches"] if path.exists() else {}
    return {kernel: Launch(**launch) for kernel, launch in found.items()}
