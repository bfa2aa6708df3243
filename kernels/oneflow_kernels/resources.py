"""What compiled kernels need of a GPU, without one: `python -m oneflow_kernels.resources --target cuda:90`."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from oneflow_kernels.launches import ALL, Launch
from oneflow_kernels.variants import Variant, all_variants

SHARED_BYTES = dict(zip(ALL, (232448, 232448, 166912, 65536), strict=True))  # of one program
SCHEDULERS = 4  # of a multiprocessor, each with warps and registers of its own
REGISTERS = 512  # of a scheduler, for one lane of its warps
MAX_PROGRAMS = 32  # of a multiprocessor


class Multiprocessor(NamedTuple):
    """What the programs that run on it at once share."""

    warps: int  # of a scheduler, at most
    shared_bytes: int
    reserved_bytes: int  # of each program, for the system


AMPERE, HOPPER = Multiprocessor(16, 164 * 1024, 1024), Multiprocessor(16, 228 * 1024, 1024)
MULTIPROCESSORS = dict(zip(ALL, (HOPPER, HOPPER, AMPERE, Multiprocessor(8, 65536, 0)), strict=True))
COLUMNS = (
    "registers",
    "spilled bytes",
    "shared bytes",
    "programs per multiprocessor",
    "matrix instructions",
    "TMA",
    "4-byte copies",
)
LINE_SECONDS = 5.0  # between two lines of progress
MULTIPLE_OF_16 = [["tt.divisibility", 16]]  # as torch promises of every tensor's address


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a variant needs on a target."""

    target: str
    name: str
    launch: str
    num_warps: int
    registers: int  # of a thread
    spilled_bytes: int  # of a thread: registers that did not fit and live in memory
    shared_bytes: int  # of a program
    matrix_instructions: int  # wgmma, tcgen05.mma, mma.sync or mfma in the code
    tma_instructions: int
    narrow_copies: int  # into shared memory, asynchronous, of four bytes

    @property
    def programs(self) -> int:
        """How many run on a multiprocessor at once; while one waits, another computes."""
        of = MULTIPROCESSORS[self.target]
        warps = min(REGISTERS // (-(-max(self.registers, 1) // 8) * 8), of.warps)  # registers are dealt out by eights
        shared = of.shared_bytes // max(self.shared_bytes + of.reserved_bytes, 1)
        return min(SCHEDULERS * warps // self.num_warps, shared, MAX_PROGRAMS)

    @property
    def fits(self) -> bool:
        """Whether nothing is spilled and the shared memory exists."""
        return self.spilled_bytes == 0 and self.shared_bytes <= SHARED_BYTES[self.target]


def measure(variant: Variant, target: str) -> Usage:
    """Compile a variant for a target and read what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, _, architecture = target.partition(":")
    gpu = GPUTarget(backend, int(architecture), 32) if backend == "cuda" else GPUTarget(backend, architecture, 64)
    kinds = [kind.partition(":") for kind in variant.signature.values()]
    attributes = {(i,): MULTIPLE_OF_16 for i, (kind, _, multiple) in enumerate(kinds) if multiple or kind[0] == "*"}
    signature = {name: kind for name, (kind, _, _) in zip(variant.signature, kinds, strict=True)}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=attributes)
    options = {"num_warps": variant.launch.num_warps, "num_stages": variant.launch.num_stages}
    compiled = triton.compile(source, target=gpu, options=options)
    read = _read_cuda if backend == "cuda" else _read_hip
    return Usage(
        target=target,
        name=variant.name,
        launch=str(variant.launch),
        num_warps=variant.launch.num_warps,
        shared_bytes=compiled.metadata.shared,
        **read(compiled.asm),
    )


def _read_cuda(asm: dict[str, object]) -> dict[str, int]:
    """From the binary, and from the code it was assembled from: wgmma and the like multiply, bulk copies are TMA."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])  # type: ignore[arg-type]
        found = re.search(r"REG:(\d+) STACK:(\d+)", _output("cuobjdump", "-res-usage", cubin))
        assert found is not None, "cuobjdump says nothing of registers"
        stack = int(found[2])
        if stack and not re.search(r"\b(LDL|STL)\b", _output("nvdisasm", "-c", cubin)):
            stack = 0  # reserved, and never written or read
    code = str(asm["ptx"])
    return {
        "registers": int(found[1]),
        "spilled_bytes": stack,
        "matrix_instructions": len(
            re.findall(r"^\s*(?:@\S+ )?(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b", code, re.M)
        ),
        "tma_instructions": len(re.findall(r"\bcp\.async\.bulk\.tensor\b", code)),
        "narrow_copies": len(re.findall(r"\bcp\.async\.ca\.shared\.global\b.*, 0x4, ", code)),
    }


def _read_hip(asm: dict[str, object]) -> dict[str, int]:
    code = str(asm["amdgcn"])

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        assert found is not None, f"no {name} in the code"
        return int(found[1])

    return {
        "registers": number("vgpr_count"),
        "spilled_bytes": 4 * number("vgpr_spill_count"),
        "matrix_instructions": len(re.findall(r"\bv_mfma_", code)),
        "tma_instructions": 0,
        "narrow_copies": 0,
    }


def _output(program: str, *arguments: str | Path) -> str:
    import triton

    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    return subprocess.run([folder / program, *arguments], capture_output=True, text=True, check=True).stdout


def measure_all(variants: list[Variant], targets: list[str]) -> list[Usage]:
    """Every variant on every target, in order; as many at once as there are processors, lines of progress on stderr."""
    pairs = [(variant, target) for target in targets for variant in variants if target in variant.targets]
    tasks = [(variant.name, variant.launch, target) for variant, target in pairs]
    usages, said = [], time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for usage in pool.map(_measure_named, *zip(*tasks, strict=True)):
            usages.append(usage)
            if time.monotonic() - said > LINE_SECONDS or len(usages) == len(tasks):
                print(f"{len(usages)} of {len(tasks)} compiled", file=sys.stderr, flush=True)
                said = time.monotonic()
    return usages


def _measure_named(name: str, launch: Launch, target: str) -> Usage:
    """By name, since a jit function cannot be sent to another process."""
    (variant,) = (v for v in all_variants() if (v.name, v.launch) == (name, launch) and target in v.targets)
    return measure(variant, target)


def table(usages: list[Usage]) -> str:
    """Markdown, one table a target."""
    parts = []
    for target in dict.fromkeys(usage.target for usage in usages):
        lines = [
            f"## {target}, {SHARED_BYTES[target]:,} bytes of shared memory a program",
            "",
            f"| kernel | launch | {' | '.join(COLUMNS)} |",
            f"|---|---|{'---:|' * len(COLUMNS)}",
        ]
        for u in usages:
            if u.target == target:
                needs = u.registers, u.spilled_bytes, u.shared_bytes, u.programs
                numbers = *needs, u.matrix_instructions, u.tma_instructions, u.narrow_copies
                lines.append(f"| {u.name} | {u.launch} | {' | '.join(f'{number:,}' for number in numbers)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Entry point: prints the tables; code 1 if a kernel spills or asks for more shared memory than there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=SHARED_BYTES, help="may be given again; all, if left out")
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels whose names contain this")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    variants = [variant for variant in all_variants() if arguments.only in variant.name]
    usages = measure_all(variants, arguments.target or list(SHARED_BYTES))
    print(table(usages), end="")
    spoiled = [usage for usage in usages if not usage.fits]
    for usage in spoiled:
        print(
            f"error: {usage.target}, {usage.name}, {usage.launch}: {usage.spilled_bytes} bytes spilled, "
            f"{usage.shared_bytes} of {SHARED_BYTES[usage.target]} bytes of shared memory; choose smaller tiles",
            file=sys.stderr,
        )
    sys.exit(bool(spoiled))


if __name__ == "__main__":
    main()
