"""How equal the attention work of ranks is, by the lengths of documents and by which of them make a pack."""

# Shapes: n documents, s steps, r ranks of one pack each.

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from oneflow_dist.bars import bar
from oneflow_dist.containers import Capacity
from oneflow_dist.data.choosing import choose_samples
from oneflow_dist.flow.noising import keyed_generator
from tools.benchmark.result import Measured, Series

PACKINGS = ("oldest", "balanced")
WARM_WINDOWS = 2  # that are packed before anything is counted
BEGINNING = 5  # steps of a run, which has seen few documents
FEW = 8  # ranks that share a step, beside all of them
SECTIONS = (0.33, 0.67)  # of lengths: a third is short, a third is long
QUANTILES = (np.arange(400) + 0.5) / 400
FACTORS = (1, 2, 3, 4, 6, 8)  # rows of a pack, times those of the longest document
SWEPT = 16  # ranks, of those packs

BALANCE = "mean / most over {} ranks, %"
WORK = "attention pairs of a pack / mean of its step"
WAITS = "windows that a {} document waits"
ROWS = "mean / most over {} ranks, %, by rows of a pack / longest document"
ENOUGH = "rows of a pack / longest document that equal work needs"

# Sections of OpenStax textbooks: their rows at 0, 5, ... 100 % of the 930 of 946 that have at most 12,288, with 65 for
# each figure and tokens of a vocabulary of 4,096 that was learnt on them.
SECTION_ROWS = (
    *(74, 355, 415, 600, 1483, 2173, 2658, 3105, 3494, 3877, 4270),
    *(4635, 4975, 5428, 5819, 6291, 6772, 7360, 8177, 9538, 12285),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Documents of one kind, and the packs that they are trained in."""

    name: str
    draw: Callable[[np.random.Generator, int], Float64[np.ndarray, "n"]]  # rows of complete ones
    given: int  # rows that noising leaves: a picture with its token
    is_interleaved: bool  # half of them are complete in training
    longest: int  # rows of a complete one; longer ones are left out
    rows: int  # of a pack
    window: int  # how many wait

    def noised(self, rng: np.random.Generator, count: int) -> Int64[np.ndarray, "n"]:
        """Rows of documents as training sees them: of the text what is there at a time of its own."""
        rows = np.concatenate([self.draw(rng, count) for _ in range(2)])
        rows = rows[rows <= self.longest][:count]
        text_time = np.minimum(1.0, (2.0 if self.is_interleaved else 1.0) * rng.random(len(rows)))
        return self.given + np.maximum(1, text_time * (rows - self.given)).astype(np.int64)


def _captions(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "n"]:
    return 257.0 + np.exp(rng.normal(np.log(60.0), 0.8, count))


def _sections(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "n"]:
    return np.interp(rng.random(count), np.linspace(0.0, 1.0, len(SECTION_ROWS)), SECTION_ROWS)


def _pages(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "n"]:
    return np.exp(rng.normal(np.log(800.0), 1.0, count))


def _books(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "n"]:
    return 256.0 * (1.0 - rng.random(count)) ** (-1.0 / 1.1)


KINDS = (
    Documents(name="captions", draw=_captions, given=257, is_interleaved=False, longest=512, rows=16_384, window=1024),
    Documents(name="textbooks", draw=_sections, given=0, is_interleaved=True, longest=12_288, rows=32_768, window=256),
    Documents(name="web pages", draw=_pages, given=0, is_interleaved=True, longest=8_192, rows=32_768, window=1024),
    Documents(name="books", draw=_books, given=0, is_interleaved=True, longest=12_288, rows=65_536, window=1024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """What a lane packs: of each pack the documents' rows, and how many were drawn since each was."""

    rows: list[Int64[np.ndarray, "_"]]
    waits: list[Int64[np.ndarray, "_"]]
    seconds: list[float]  # that choosing took

    @property
    def pairs(self) -> Int64[np.ndarray, "s"]:
        """Attention pairs of each pack."""
        return np.array([np.square(rows).sum() for rows in self.rows])


def measure(kinds: Sequence[Documents], ranks: int, steps: int) -> Measured:
    """Both ways of packing for each kind of documents, then over the size of packs. A rank has one pack of a step."""
    series: Series = {}
    cases = [(kind, packing) for kind in kinds for packing in PACKINGS]
    for kind, packing in bar(cases, unit="case", desc="kinds"):
        for title, values in describe(kind, pack_ranks(kind, packing, ranks, steps), steps).items():
            series.setdefault(title, {})[f"{kind.name}, {packing}"] = values
    sweep = [(kind, factor) for kind in kinds if not kind.given for factor in FACTORS]  # captions are all about as long
    for kind, factor in bar(sweep, unit="case", desc="sizes"):
        larger, few = replace(kind, rows=factor * kind.longest), min(SWEPT, ranks)
        for packing in PACKINGS:
            packs = pack_ranks(larger, packing, few, steps)
            pairs = np.stack([own.pairs[-steps:] for own in packs], axis=1)
            name = f"{kind.name}, {packing} x {factor}"
            series.setdefault(ROWS.format(few), {})[name] = [float(balance_of(pairs, few).mean())]
    series[ENOUGH] = {kind.name: [kind.longest / row_pairs(kind)] for kind in kinds}
    return Measured(series=series, notes=NOTES)


NOTES = [
    (
        "Made-up lengths, chosen by the code that training calls; a rank has one pack of a step. Each step waits for "
        f"the rank with most attention pairs. Counted after {WARM_WINDOWS} windows; the beginning is the first "
        f"{BEGINNING} steps."
    ),
    (
        "captions: 257 rows of a picture, lognormal text (median 60, sigma 0.8); textbooks: rows of OpenStax sections; "
        "web pages: lognormal (median 800, sigma 1); books: Pareto (from 256 on, exponent 1.1). Text is noised as "
        "training does."
    ),
]


def row_pairs(kind: Documents) -> float:
    """Attention pairs of a row, in the mean over many documents."""
    rows = kind.noised(keyed_generator(0, 0, f"many {kind.name}"), 100_000)
    return float(np.square(rows).sum() / rows.sum())


def pack_ranks(kind: Documents, packing: str, ranks: int, steps: int) -> list[Packs]:
    """What each rank's lane packs: until it is warm, and so many steps more."""
    return [pack_lane(kind, packing, rank, steps) for rank in range(ranks)]


def pack_lane(kind: Documents, packing: str, lane: int, steps: int) -> Packs:
    """The packs of one lane, chosen as `Lane` chooses them."""
    rng = keyed_generator(0, lane, kind.name)
    capacity = Capacity(rows=kind.rows, tokens=kind.rows, bag_tokens=0, sequences=kind.rows, pieces=(), patches=())
    packs, waiting = Packs(rows=[], waits=[], seconds=[]), list[tuple[int, Capacity]]()
    drawn = num_rows = num_pairs = last = 0
    while not last or len(packs.rows) < last:
        new = kind.noised(rng, kind.window - len(waiting))
        waiting += [(drawn + place, _text(rows)) for place, rows in enumerate(new.tolist())]
        drawn, num_rows, num_pairs = drawn + len(new), num_rows + int(new.sum()), num_pairs + int(np.square(new).sum())
        start = time.process_time()
        chosen = choose_samples(
            [size for _, size in waiting], capacity, num_pairs / num_rows if packing == "balanced" else None
        )
        packs.seconds.append(time.process_time() - start)
        packs.rows.append(np.array([waiting[index][1].rows for index in chosen]))
        packs.waits.append(drawn - np.array([waiting[index][0] for index in chosen]))
        taken = set(chosen)
        waiting = [own for index, own in enumerate(waiting) if index not in taken]
        if not last and drawn >= (WARM_WINDOWS + 1) * kind.window:
            last = len(packs.rows) + steps
    return packs


def _text(rows: int) -> Capacity:
    return Capacity(rows=rows, tokens=rows, bag_tokens=0, sequences=1, pieces=(), patches=())


def describe(kind: Documents, packs: list[Packs], steps: int) -> dict[str, list[float]]:
    """What is told of a case, by title."""
    pairs = np.stack([own.pairs[-steps:] for own in packs], axis=1)
    first = np.stack([own.pairs[:BEGINNING] for own in packs], axis=1)
    rows = [own for packed in packs for own in packed.rows[-steps:]]
    waits = np.concatenate([own for packed in packs for own in packed.waits[-steps:]]) / kind.window
    lengths = np.concatenate(rows)
    short, long = np.quantile(lengths, SECTIONS)
    ranks = len(packs)
    means = {
        f"{BALANCE.format(ranks)}, at the beginning": float(balance_of(first, ranks).mean()),
        "padding, %": 100.0 - 100.0 * float(np.mean([own.sum() for own in rows])) / kind.rows,
        "documents of a pack": len(lengths) / len(rows),
        WAITS.format("short"): float(waits[lengths <= short].mean()),
        WAITS.format("long"): float(waits[lengths > long].mean()),
        "longest wait, windows": float(waits.max()),
        "CPU ms of choosing a pack": 1e3 * float(np.median([own for packed in packs for own in packed.seconds])),
    }
    of_steps = {
        BALANCE.format(number): balance_of(pairs, number).tolist() for number in sorted({min(FEW, ranks), ranks})
    }
    spread = {WORK: np.quantile(pairs / pairs.mean(axis=1, keepdims=True), QUANTILES).round(4).tolist()}
    return {title: [value] for title, value in means.items()} | of_steps | spread


def balance_of(pairs: Int64[np.ndarray, "s r"], ranks: int) -> Float64[np.ndarray, "_"]:
    """Mean over most of each step of so many ranks, in percent; of many ranks several such steps are made."""
    of_steps = pairs[:, : pairs.shape[1] // ranks * ranks].reshape(-1, ranks)
    return 100.0 * of_steps.mean(axis=1) / of_steps.max(axis=1)
