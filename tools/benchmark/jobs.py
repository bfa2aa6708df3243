"""Everything that is measured, the most worthy first, with what it is expected to take on an H100's machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

CHECKPOINTING = ("none", "selective", "full")
SMALL_MODEL = ("model.num_layers=1", "model.vocab_size=1024")  # has the same blocks: they compile to the same code
TRAINING, RULES = "forward and backward", ("documents", "causal", "Transfusion", "blocks", "kept keys")
AGAIN, TUNED = ", again", ", as tuned"

# Seconds and GiB below are estimates for an H100 beside 16 cores; nothing of this has run on one.
START = 10.0  # to import torch and ours and to start CUDA: 4 s here from a warm disk, and a fresh machine's is cold
BLOCK = 45.0  # inductor on a block, forward and backward: 25 s here on one core for a CPU, more for Triton's kernels
CACHED = 12.0  # the same from the cache: what is traced is traced again
MODEL = 8.0  # first weights, four made-up packs, four steps
KERNEL = 2.5  # one of ours in one form, alone on a core: 316 s for all 107 here
FLEX = 100.0  # FlexAttention with its mask, forward and backward: 60 to 120 s elsewhere
STEPS = 8.0  # two seconds of warm-up and twenty steps of .25 s
OURS_GIB = 54.0  # planned without checkpointing: 50.2
PEER_GIB = 64.0  # another unembedding with its optimizer, and logits of all rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process measures."""

    name: str
    kind: Literal["device", "ours", "peer", "case", "checks", "launches"]
    gib: float  # of the device's memory, at most
    compiles: float  # seconds until it asks for the device, or ends
    measures: float = 0.0  # seconds that it has the device for itself; 0: never
    after: tuple[str, ...] = ()  # jobs that have to end before, by the beginnings of their names
    what: tuple[str, ...] = ()  # contests by name; checks and kernels by the beginnings of their names
    overrides: Sequence[str] = ()  # of the config
    packs: Sequence[int] = (1,)  # of ours: microbatches in a step
    is_profiled: bool = False  # two steps of ours, or a call of each contender, kernel by kernel
    is_warming: bool = False  # ends where it would ask for the device: what it has compiled stays in the cache
    sequences: int = 0  # of the peer: equal documents in a step
    uses_fsdp: bool = True  # of the peer; else autocast


def jobs_of(part: str, rows: int, document_rows: int) -> list[Job]:
    """Those of a part, in order of their worth.

    Args:
        part: "first": what one wants to know if the machine vanishes at any moment; "second": the fastest launches, all
            again with them, the contests that are left, and the memory of steps as planned; "kernels": launches,
            numbers and contests; "check": numbers alone.
        rows: of a pack.
        document_rows: of our longest documents; the peer has documents of this length, and a pair of the longest.
    """
    many = rows // document_rows
    if part == "first":
        main, peer = _ours("bf16", "compiled", "none"), _peer(many, document_rows, "none")
        return [
            Job(name="device", kind="device", gib=6.0, compiles=START, measures=14.0),
            replace(main, packs=(1, 4), is_profiled=True, compiles=START + MODEL + BLOCK, measures=STEPS + 20.0),
            *_real_cases(),
            *_checks(),
            *_warmed(peer),
            replace(main, name=main.name + AGAIN),
            replace(peer, name=peer.name + AGAIN),
            *_warmed(_peer(2, rows // 2, "none")),
            *_warmed(_ours("float8", "compiled", "none")),
            *_warmed(_ours("bf16", "compiled", "selective")),
            *_warmed(_peer(many, document_rows, "selective")),
            *_warmed(_ours("bf16", "compiled", "full")),
        ]
    if part == "second":
        return [
            *_launches(),
            *map(_tuned, _real_cases()),
            *(_ours("bf16", "eager", checkpointing) for checkpointing in CHECKPOINTING),
            *_warmed(_peer(many, document_rows, "none", uses_fsdp=False)),
            *_contests(),
            *map(_tuned, _checks()),
        ]
    return _checks() if part == "check" else [*_launches(), *_checks(), *_contests()]


def _ours(precision: str, mode: str, checkpointing: str) -> Job:
    is_compiled = mode == "compiled"
    choices = f"train.precision={precision}", f"train.activation_checkpointing={checkpointing}"
    return Job(
        name=f"ours {precision} {mode} {checkpointing}",
        kind="ours",
        gib=OURS_GIB,
        compiles=START + MODEL + (CACHED if is_compiled else 0.0),
        measures=STEPS,
        overrides=(*choices, f"train.compile={str(is_compiled).lower()}"),
    )


def _peer(sequences: int, length: int, checkpointing: str, uses_fsdp: bool = True) -> Job:
    return Job(
        name=f"torchtitan {sequences} x {length} {'' if uses_fsdp else 'autocast '}{checkpointing}",
        kind="peer",
        gib=PEER_GIB,
        compiles=START + MODEL + CACHED + 8.0,  # its loss over the whole vocabulary is compiled, and not in the cache
        measures=STEPS,
        overrides=("train.compile=true", f"train.activation_checkpointing={checkpointing}"),
        sequences=sequences,
        uses_fsdp=uses_fsdp,
    )


def _warmed(job: Job) -> list[Job]:
    """A job after one that compiles the same blocks beside others, in little memory."""
    name, overrides = f"compiling {job.name}", (*job.overrides, *SMALL_MODEL)
    warming = replace(job, name=name, overrides=overrides, is_warming=True, gib=4.0, measures=0.0)
    return [replace(warming, compiles=START + 4.0 + BLOCK), replace(job, after=(name,))]


def _real_cases() -> list[Job]:
    """Contests at a pack of the config as it comes."""
    return [
        replace(_contest(f"{what}, real pack, {TRAINING}", gib, compiles), measures=14.0, after=(), is_profiled=True)
        for what, gib, compiles in (("bag loss", 10.0, 40.0), ("attention", 6.0, FLEX))
    ]


def _contests() -> list[Job]:
    """The others of `kernels.all_cases`, most important first."""
    kinds = ("7 documents", "7 documents, Transfusion", "7 documents, causal", "1 document")
    return [
        *(_contest(f"attention, {kind}, {TRAINING}", 14.0, FLEX) for kind in kinds),
        _contest(f"bag loss, 8B, {TRAINING}", 24.0, 40.0),
        _contest("sampling, 8B", 8.0, 20.0),
    ]


def _contest(case: str, gib: float, compiles: float) -> Job:
    case_job = Job(name=case, kind="case", what=(case,), gib=gib, compiles=START + compiles, measures=8.0)
    return replace(case_job, after=("launches",))


def _checks() -> list[Job]:
    """Three dtypes of each check: forward, two gradients and their sums; at 2.5 s a kernel."""
    families = {f"attention, {rule}": 36 for rule in RULES} | {"bag loss": 12, "draws": 2}
    return [
        Job(
            name=f"numbers of {family}",
            kind="checks",
            gib=2.0,
            compiles=START + KERNEL * kernels,
            what=("drawn tokens", "first weights") if family == "draws" else (family,),
        )
        for family, kernels in families.items()
    ]


def _launches() -> list[Job]:
    """Every launch of each kernel; what a group's calls take beside the kernel in question is compiled, too."""
    groups = {  # names, kernels to compile, launches to time
        "attention forward": (("attention forward",), 5, 5),
        "attention key gradient": (("attention key",), 14, 6),
        "attention query gradient": (("attention query",), 13, 5),
        "logits": (("bag softmax", "logsumexp", "best token"), 6, 6),
    }
    return [
        Job(
            name=f"launches of {group}",
            kind="launches",
            gib=6.0,
            compiles=START + KERNEL * kernels,
            measures=2.0 + launches,
            what=names,
        )
        for group, (names, kernels, launches) in groups.items()
    ]


def _tuned(job: Job) -> Job:
    return replace(job, name=job.name + TUNED, after=("launches",))
