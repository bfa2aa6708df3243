"""Everything that is measured, the most worthy first, with what it is expected to take on an H100's machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

CHECKPOINTING = ("none", "selective", "full")
SMALL_MODEL = ("model.num_layers=1", "model.vocab_size=1024")  # has the same blocks: they compile to the same code
TRAINING, RULES = "forward and backward", ("documents", "causal", "Transfusion")
AGAIN, TUNED = ", again", ", as tuned"

# Seconds and GiB below are estimates for an H100 beside 16 cores; nothing of this has run on one.
START = 10.0  # to import torch and ours and to start CUDA: 4 s here from a warm disk, and a fresh machine's is cold
BLOCK = 45.0  # inductor on a block, forward and backward: 25 s here on one core for a CPU, more for Triton's kernels
CACHED = 12.0  # the same from the cache: what is traced is traced again
MODEL = 8.0  # first weights, four made-up packs, four steps
KERNEL = 2.5  # one of ours in one form, alone on a core: 316 s for all 107 here
FLEX = 100.0  # FlexAttention and its mask, forward and backward: 60 to 120 s elsewhere
STEPS = 8.0  # two seconds of warm-up and twenty steps of .25 s
OURS_GIB = 54.0  # planned without checkpointing: 50.2
PEER_GIB = 64.0  # another unembedding with its optimizer, and logits of all rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process measures."""

    name: str
    kind: Literal["device", "ours", "peer", "case", "checks", "launches", "counters"]
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
    needs: str = ""  # a package or a program that must be installed


def first_part(rows: int, document_rows: int) -> list[Job]:
    """What one wants to know if the machine vanishes at any moment.

    Args:
        rows: of a pack.
        document_rows: of our longest documents; the peer has documents of this length, and a pair of the longest.
    """
    main, peer, pair = _ours("bf16", "compiled", "none"), _peer(rows // document_rows, document_rows, "none"), rows // 2
    return [
        Job(name="device", kind="device", gib=6.0, compiles=START, measures=14.0),
        replace(main, packs=(1, 4), is_profiled=True, compiles=START + MODEL + BLOCK, measures=STEPS + 8.0 + 12.0),
        *_real_cases(),
        *_checks(),
        *_warmed(peer),
        replace(main, name=main.name + AGAIN),
        replace(peer, name=peer.name + AGAIN),
        *_warmed(_peer(2, pair, "none")),
        *_warmed(_ours("float8", "compiled", "none")),
        *_warmed(_ours("bf16", "compiled", "selective")),
        *_warmed(_peer(rows // document_rows, document_rows, "selective")),
        *_warmed(_ours("bf16", "compiled", "full")),
    ]


def second_part(rows: int, document_rows: int) -> list[Job]:
    """The fastest launches, all again with them, the contests that are left, and the memory of steps as planned."""
    bag, attention = _real_cases()
    return [
        *_launches(),
        *(_tuned(job) for job in (bag, attention)),
        *(_ours("bf16", "eager", checkpointing) for checkpointing in CHECKPOINTING),
        *_warmed(_peer(rows // document_rows, document_rows, "none", uses_fsdp=False)),
        *_contests(),
        Job(
            name="counters",
            kind="counters",
            needs="ncu",
            gib=8.0,
            compiles=START + 8 * KERNEL,
            measures=25.0,
            after=("launches",),
        ),
        *(_tuned(job) for job in _checks()),
    ]


def jobs_of(part: str, rows: int, document_rows: int) -> list[Job]:
    """Those of a part: "first"; "second"; "kernels": launches, numbers and contests; "check": numbers alone."""
    if part == "kernels":
        return [*_launches(), *_checks(), *_contests()]
    if part == "check":
        return _checks()
    return (first_part if part == "first" else second_part)(rows, document_rows)


def _ours(precision: str, mode: str, checkpointing: str) -> Job:
    is_compiled = mode == "compiled"
    ways = f"train.precision={precision}", f"train.activation_checkpointing={checkpointing}"
    return Job(
        name=f"ours {precision} {mode} {checkpointing}",
        kind="ours",
        gib=OURS_GIB,
        compiles=START + MODEL + (CACHED if is_compiled else 0.0),
        measures=STEPS,
        overrides=(*ways, f"train.compile={str(is_compiled).lower()}"),
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
        needs="torchtitan",
    )


def _warmed(job: Job) -> list[Job]:
    """A job after one that compiles the same blocks beside others, in little memory."""
    name = f"compiling {job.name}"
    warming = replace(
        job,
        name=name,
        gib=4.0,
        compiles=START + 4.0 + BLOCK,
        measures=0.0,
        overrides=(*job.overrides, *SMALL_MODEL),
        is_warming=True,
    )
    return [warming, replace(job, after=(name,))]


def _real_cases() -> list[Job]:
    """Contests at a pack of the config as it comes."""
    bag, attention = f"bag loss, real pack, {TRAINING}", f"attention, real pack, {TRAINING}"
    return [
        Job(name=bag, kind="case", what=(bag,), gib=10.0, compiles=START + 40.0, measures=14.0, is_profiled=True),
        Job(
            name=attention,
            kind="case",
            what=(attention,),
            gib=6.0,
            compiles=START + FLEX,
            measures=14.0,
            is_profiled=True,
        ),
    ]


def _checks() -> list[Job]:
    """Three dtypes of each check: forward, two gradients and their sums; at 2.5 s a kernel."""
    families = {
        **{f"attention, {rule}": 36 for rule in RULES},
        "bag loss": 12,
        "draws": 2,
    }
    draws = ("drawn tokens", "first weights")
    return [
        Job(
            name=f"numbers of {family}",
            kind="checks",
            gib=2.0,
            compiles=START + KERNEL * kernels,
            what=draws if family == "draws" else (family,),
        )
        for family, kernels in families.items()
    ]


def _launches() -> list[Job]:
    """Every launch of each kernel; what a group's calls take beside the kernel in question is compiled, too."""
    groups = {  # names, kernels to compile, launches to time, GiB
        "attention forward": (("attention forward",), 5, 5, 6.0),
        "attention key gradient": (("attention key",), 14, 6, 6.0),
        "attention query gradient": (("attention query",), 13, 5, 6.0),
        "logits": (("bag softmax", "logsumexp", "best token"), 6, 6, 6.0),
    }
    return [
        Job(
            name=f"launches of {group}",
            kind="launches",
            gib=gib,
            compiles=START + KERNEL * kernels,
            measures=2.0 + launches,
            what=names,
        )
        for group, (names, kernels, launches, gib) in groups.items()
    ]


def _tuned(job: Job) -> Job:
    return replace(job, name=job.name + TUNED, after=("launches",))


def _contests() -> list[Job]:
    """All of `kernels.all_cases`, most important first."""
    bag, sampling = f"bag loss, 8B, {TRAINING}", "sampling, 8B"
    kinds = "7 documents", *(f"7 documents, {rule}" for rule in ("Transfusion", "causal")), "1 document"
    attention = [f"attention, {kind}, {TRAINING}" for kind in kinds]
    return [
        *(_contest(name, (name,), 8.0, FLEX) for name in attention),
        _contest(bag, (bag,), 24.0, 40.0),
        _contest(sampling, (sampling,), 8.0, 20.0),
    ]


def _contest(name: str, cases: tuple[str, ...], gib: float, compiles: float) -> Job:
    return Job(
        name=name, kind="case", what=cases, gib=gib, compiles=START + compiles, measures=8.0, after=("launches",)
    )
