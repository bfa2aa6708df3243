"""Which samples belong together, which are dropped, and which are kept from training."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from oneflow_dist.prepare.duplicates import group_near, join
from oneflow_dist.prepare.samples import Sample

ALONE = ("pairs", "pictures")  # kinds of samples that are one picture
FURNITURE = 20  # documents with one picture: it is a logo or a rule, and they have no more in common than that
FEWEST = 20  # samples of a kind from which on at least one is held out


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What becomes of each sample."""

    duplicates: list[list[str]]  # the names of samples with near pictures, a list for each group
    is_dropped: list[bool]
    is_held_out: list[bool]


def split_samples(samples: Sequence[Sample], share: float, seed: int, drop: bool) -> Split:
    """Near duplicates and the parts of one document stay together; a hash of their content decides where.

    So a sample keeps its place when others are added, unless one of them is near to it.

    Args:
        share: of the samples that are held out; 0: none.
        drop: of pictures alone and pairs that are near to each other only the first by name is kept.
    """
    holders = _group_pictures(samples)
    dropped = {sample for held in holders for sample in _list_dropped(samples, held)} if drop else set()
    groups = _group_samples(samples, holders)
    is_dropped = [number in dropped for number in range(len(samples))]
    kept = [number for number in range(len(samples)) if number not in dropped]
    held_out = _choose_groups([samples[n] for n in kept], [groups[n] for n in kept], share, seed) if share else set()
    return Split(
        duplicates=[sorted({samples[number].name for number in held}) for held in holders],
        is_dropped=is_dropped,
        is_held_out=[groups[number] in held_out and not is_dropped[number] for number in range(len(samples))],
    )


def _group_pictures(samples: Sequence[Sample]) -> list[list[int]]:
    """The samples that hold pictures near to each other, each once, for groups of several samples of several items."""
    owners = [number for number, sample in enumerate(samples) for _ in sample.pictures]
    found: dict[int, dict[int, None]] = defaultdict(dict)
    groups = group_near([picture.signature for sample in samples for picture in sample.pictures])
    for owner, group in zip(owners, groups, strict=True):
        found[group][owner] = None
    return [list(held) for held in found.values() if len({samples[number].name for number in held}) > 1]


def _list_dropped(samples: Sequence[Sample], held: Sequence[int]) -> list[int]:
    return sorted((n for n in held if samples[n].kind in ALONE), key=lambda n: samples[n].name)[1:]


def _group_samples(samples: Sequence[Sample], holders: Sequence[Sequence[int]]) -> list[int]:
    """For each sample the first that it belongs together with: of one item, of one content, or with near pictures."""
    first: dict[tuple[str, str], int] = {}
    own = [(("name", sample.name), ("content", sample.content_hash())) for sample in samples]
    pairs = [(first.setdefault(key, number), number) for number, keys in enumerate(own) for key in keys]
    for held in holders:
        documents = [number for number in held if samples[number].kind == "documents"]
        together = held if len(documents) <= FURNITURE else [number for number in held if number not in {*documents}]
        pairs += itertools.pairwise(together)
    return join(len(samples), pairs)


def _choose_groups(samples: Sequence[Sample], groups: Sequence[int], share: float, seed: int) -> set[int]:
    """The groups that are held out: no kind loses all of its samples, and one of FEWEST loses at least one."""
    contents: dict[int, str] = {}
    kinds: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))  # of each how many samples in which group
    for sample, group in zip(samples, groups, strict=True):
        contents[group] = min(contents.get(group, "~"), sample.content_hash())
        kinds[sample.kind][group] += 1
    places = {group: _place(content, seed) for group, content in contents.items()}
    held_out = {group for group, place in places.items() if place < share}
    for counts in kinds.values():
        in_order = sorted(counts, key=lambda group: (places[group], group))
        if held_out.issuperset(counts):
            held_out.discard(in_order[-1])
        if sum(counts.values()) >= FEWEST and held_out.isdisjoint(counts) and len(counts) > 1:
            held_out.add(in_order[0])
    return held_out


def _place(content: str, seed: int) -> float:
    """A number in [0, 1) that depends on content and seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{content}".encode()).digest()[:8]) / 2.0**64
