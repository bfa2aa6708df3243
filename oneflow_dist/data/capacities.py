"""How large packs should be for a mixture: measured on its samples, not guessed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from oneflow_dist.bars import bar
from oneflow_dist.config import Config, DataConfig
from oneflow_dist.containers import Capacity, Sample
from oneflow_dist.data.choosing import choose_samples
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.mixture import Source, load_mixture
from oneflow_dist.data.shards import ShardSet, open_shards
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.data.tokenizer import load_tokenizer

MOST_WHOLE = 16_384  # samples of each source that are measured whole
MOST_NOISED = 16_384  # draws that are packed, and fewer where packs are small
PACKS = 32  # that are filled at the least
TARGET = 0.02  # the padding that is good enough
MARGIN = 1.05  # over the fullest pack that was seen
WIDER = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # rows of a pack that are tried, times what the config has or the longest needs
UNBOUNDED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Packs of one size on a mixture."""

    capacity: Capacity
    padding: float  # share of their rows that no sample fills
    samples: float  # in a pack, in the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Capacities for a mixture, beside those of the config."""

    overrides: dict[str, int]  # by the keys of a config
    now: Packing | None  # None: the longest sample does not fit
    tried: list[Packing]  # the last is what is suggested
    longest_rows: int  # of a complete sample
    num_measured: int  # samples that were measured whole
    num_samples: int  # of the mixture

    @property
    def taken(self) -> Packing:
        """What is suggested."""
        return self.tried[-1]

    def describe(self) -> str:
        """A table for people, then the keys as they are typed."""
        names = ("rows", "tokens", "bag tokens", "sequences", "pieces", "samples", "padding")
        lines = [
            f"the longest of {self.num_measured:,} samples, of {self.num_samples:,}, has {self.longest_rows} rows",
            f"{'':<4}" + "".join(f"{name:>11}" for name in names),
        ]
        marked = [("now", self.now), *(("", packing) for packing in self.tried[:-1]), ("take", self.taken)]
        lines += [_describe(note, packing) for note, packing in marked if packing is not None]
        if self.now is None:
            lines.append("now: the longest sample does not fit")
        return "\n".join([*lines, " ".join(f"{key}={value}" for key, value in self.overrides.items())])


def suggest(config: Config) -> Suggestion:
    """The smallest packs, from `data.rows_per_pack` on, that leave less than 2 % padding, or the least of those tried.

    What the config says of capacities counts for `now` alone, but for its rows, and where `data.overlong` is not
    "error" for `data.max_sample_rows`. The same for the same config and data.

    Raises:
        ValueError: the data cannot be used.
        OSError: a shard cannot be read.
    """
    sources = load_mixture(config.data.mixture)
    shards = [open_shards(source.name, source.shards, source.index) for source in sources]
    open_config = _without_limits(config)
    whole = _measure_whole(open_config, sources, shards)
    longest = whole.max(axis=0).tolist()
    rows = max(config.data.rows_per_pack, _round_up(longest[0]))
    sizes = _measure_noised(open_config, sources, shards, PACKS * rows)
    widths = [_round_up(int(factor * rows)) for factor in WIDER]
    tried: list[Packing] = []
    while widths and not (tried and tried[-1].padding < TARGET):
        tried.append(_try_rows(widths.pop(0), sizes, longest, config))
    tried.sort(key=lambda packing: -packing.padding)
    return Suggestion(
        overrides=_as_overrides(tried[-1].capacity, longest[0], config),
        now=_measure_now(sizes, longest, config),
        tried=tried,
        longest_rows=longest[0],
        num_measured=len(whole),
        num_samples=sum(map(len, shards)),
    )


def _without_limits(config: Config) -> Config:
    """The config with room for anything, but for what it leaves out on purpose."""
    data = replace(config.data, rows_per_pack=UNBOUNDED, tokens_per_pack=UNBOUNDED, cached_samples=0)
    if data.overlong == "error":
        data = replace(data, max_sample_rows=UNBOUNDED)
    modality = {name: replace(own, per_pack=UNBOUNDED) for name, own in config.modality.items()}
    return replace(config, data=data, modality=modality)


def _lane(config: Config, sources: tuple[Source, ...], shards: list[ShardSet]) -> Lane:
    return Lane(0, config, sources, shards, load_tokenizer(config.data.tokenizer, config.modality))


def _measure_whole(config: Config, sources: tuple[Source, ...], shards: list[ShardSet]) -> Int64[np.ndarray, "n k"]:
    """Of each complete sample what `Capacity.to_list` has; bag tokens are all of its targets."""
    lane = _lane(config, sources, shards)
    draws = [(stream, draw) for stream in lane.streams for draw in range(min(len(stream.shards), MOST_WHOLE))]
    samples = (stream.clean_sample_at(draw) for stream, draw in bar(draws, unit="sample", desc="measuring"))
    sizes = [_whole_size(sample) for sample in samples if sample is not None]
    if not sizes:
        raise ValueError(f"{config.data.mixture}: all samples are left out; change filters, max_images or tasks")
    return np.array(sizes)


def _whole_size(sample: Sample) -> list[int]:
    pieces, patches = [len(own) for own in sample.pieces], [len(own.patches) for own in sample.pieces]
    num_tokens = len(sample.tokens)
    return [num_tokens + sum(patches), num_tokens, int(sample.is_target.sum()), 1, *pieces, *patches]


def _measure_noised(
    config: Config, sources: tuple[Source, ...], shards: list[ShardSet], num_rows: int
) -> list[Capacity]:
    """What samples need as training sees them, in the order of a lane, until there are so many rows."""
    lane, sizes = _lane(config, sources, shards), list[Capacity]()
    with bar(total=num_rows, unit="row", desc="packing") as progress:
        while len(sizes) < MOST_NOISED and progress.n < num_rows:
            lane.draw()
            sizes.append(lane.window.popleft().size)
            progress.update(sizes[-1].rows)
    return sizes


def _try_rows(rows: int, sizes: list[Capacity], longest: list[int], config: Config) -> Packing:
    """Packs of so many rows, with as much room for all else as they turn out to need."""
    modalities = list(config.modality.values())
    none = (UNBOUNDED,) * len(modalities)
    rows_alone = Capacity(
        rows=rows, tokens=UNBOUNDED, bag_tokens=UNBOUNDED, sequences=UNBOUNDED, pieces=none, patches=none
    )
    packs = _fill(sizes, rows_alone, config.data)
    fullest = np.maximum(np.ceil(MARGIN * np.max(packs, axis=0)).astype(np.int64), longest)
    _, tokens, bag_tokens, sequences, *of_pieces = fullest.tolist()
    most_rows = (
        longest[0] if config.data.overlong == "error" else config.data.max_sample_rows
    )  # as `check_config` wants
    pieces, patches = of_pieces[: len(modalities)], of_pieces[len(modalities) :]
    per_pack = [
        max(1, number, -(-part // own.num_rows)) for number, part, own in zip(pieces, patches, modalities, strict=True)
    ]
    capacity = Capacity(
        rows=rows,
        tokens=min(rows, _round_up(max(tokens, most_rows))),
        bag_tokens=_round_up(max(bag_tokens, most_rows)),
        sequences=max(2, sequences + 1),
        pieces=tuple(per_pack),
        patches=tuple(number * own.num_rows for number, own in zip(per_pack, modalities, strict=True)),
    )
    return _pack_into(capacity, sizes, config)


def _measure_now(sizes: list[Capacity], longest: list[int], config: Config) -> Packing | None:
    """The packs of the config as it is."""
    capacity = capacity_of(config)
    room = np.array(replace(capacity, sequences=capacity.sequences - 1).to_list())
    fits = (np.array(longest) <= room).all() and longest[0] <= config.data.max_sample_rows
    return _pack_into(capacity, sizes, config) if fits else None


def _pack_into(capacity: Capacity, sizes: list[Capacity], config: Config) -> Packing:
    packs = _fill(sizes, capacity, config.data)
    rows, samples = np.mean([[pack[0], pack[3]] for pack in packs], axis=0)
    return Packing(capacity=capacity, padding=1.0 - float(rows) / capacity.rows, samples=float(samples))


def _fill(sizes: list[Capacity], capacity: Capacity, data: DataConfig) -> list[list[int]]:
    """What packs hold that are filled as a lane fills them, while there are enough samples to choose from."""
    waiting, rest, packs = sizes[: data.window_samples], deque(sizes[data.window_samples :]), list[list[int]]()
    num_rows, num_pairs = np.sum([[size.rows, size.rows**2] for size in sizes], axis=0).tolist()
    row_pairs = num_pairs / num_rows if data.packing == "balanced" else None
    while True:
        chosen = choose_samples(waiting, capacity, row_pairs)
        if len(chosen) == len(waiting) and packs:  # what is left does not fill a pack
            return packs
        packs.append(np.sum([waiting[index].to_list() for index in chosen], axis=0).tolist())
        taken = set(chosen)
        waiting = [size for index, size in enumerate(waiting) if index not in taken]
        if len(rest) < len(chosen):
            return packs
        waiting += [rest.popleft() for _ in chosen]


def _as_overrides(capacity: Capacity, longest_rows: int, config: Config) -> dict[str, int]:
    own = {} if config.data.overlong != "error" else {"data.max_sample_rows": longest_rows}
    return {
        "data.rows_per_pack": capacity.rows,
        "data.tokens_per_pack": capacity.tokens,
        "data.bag_tokens_per_pack": capacity.bag_tokens,
        "data.sequences_per_pack": capacity.sequences,
        **own,
        **{f"modality.{name}.per_pack": most for name, most in zip(config.modality, capacity.pieces, strict=True)},
    }


def _describe(note: str, packing: Packing) -> str:
    room = packing.capacity
    numbers = (room.rows, room.tokens, room.bag_tokens, room.sequences, sum(room.pieces))
    cells = [*(f"{number:>11,}" for number in numbers), f"{packing.samples:>11.1f}", f"{packing.padding:>11.2%}"]
    return f"{note:<4}{''.join(cells)}"


def _round_up(rows: int) -> int:
    """To whole tiles of kernels."""
    return -(-rows // 64) * 64
