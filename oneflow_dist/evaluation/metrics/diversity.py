"""Whether what was written is of many kinds, as long as real texts, and not copied from what was trained on."""

# Shapes: n made items, m of training, d numbers of each.

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.distances import measure_by_slopes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR = 0.05  # as near as this share of held-out pictures is to what was trained on
BLOCK = 1024
NONE = "ask for at least one"
Text = Sequence[str]  # of words, or of what else is counted; a str is a text of letters
Place = tuple[int, int]  # which text, and where in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long made and real items are; quantiles by share."""

    made: Measure
    real: Measure
    made_quantiles: dict[float, float]
    real_quantiles: dict[float, float]
    distance: Measure  # Wasserstein-1, in the unit of the lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest of a set to each picture."""

    index: Int64[np.ndarray, "n"]
    distance: Float64[np.ndarray, "n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCopies:
    """What of made texts stands in training texts."""

    known: Measure  # share of n-grams
    whole: Measure  # share of texts that are a training text
    longest: Measure  # the longest run that stands in one training text, mean over made texts
    most: int  # the longest of all


def measure_distinct(texts: Sequence[Text], n: int) -> Measure:
    """Different n-grams over all n-grams of all texts, which are more where there are fewer texts.

    The interval is of what is left without each text: texts drawn with repetition would have fewer different n-grams.

    Raises:
        ValueError: no text has n words.
    Source: arXiv:1510.03055, section 4.3.
    """
    grams = [_grams(text, n) for text in texts]
    total, length = Counter(gram for text in grams for gram in text), sum(map(len, grams))
    if not length:
        raise ValueError(f"texts: none of {len(texts)} has {n} words; {NONE}")
    value, left = len(total) / length, []
    for text in grams:
        own = sum(total[gram] == count for gram, count in Counter(text).items())
        rest = length - len(text)
        left.append((len(total) - own) / rest if rest else value)
    return measure_by_slopes(value, (len(texts) - 1) * (np.mean(left) - np.array(left)))


def compare_lengths(made: Sequence[int], real: Sequence[int]) -> Lengths:
    """Means, quantiles and distance of two sets of lengths.

    The distance is the area between the shares that are no longer than t, over t; its interval is of what each made
    item adds to first order, so that of equal sets it is 0.

    Raises:
        ValueError: there are none of either.
    """
    for name, values in (("made", made), ("real", real)):
        if not values:
            raise ValueError(f"{name}: no lengths to compare; {NONE}")
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (made, real))
    points = np.unique(np.concatenate([ours, theirs]))
    steps, points = np.diff(points), points[:-1]
    is_within = ours[:, None] <= points
    share = is_within.mean(0)
    gap = share - (theirs[:, None] <= points).mean(0)
    slopes = ((is_within - share) * np.sign(gap) * steps).sum(1)
    return Lengths(
        made=Measure.mean_of(ours),
        real=Measure.mean_of(theirs),
        made_quantiles=_quantiles(ours),
        real_quantiles=_quantiles(theirs),
        distance=measure_by_slopes(float((np.abs(gap) * steps).sum()), slopes),
    )


def nearest_pictures(made: Float[np.ndarray, "n d"], train: Float[np.ndarray, "m d"]) -> Nearest:
    """The nearest training picture to each made one, by Euclid's distance of pixels or features: 0 of a copy.

    Raises:
        ValueError: nothing to be near to.
    """
    if not len(train):
        raise ValueError(f"train: no pictures to be near to; {NONE}")
    index = np.zeros(len(made), dtype=np.int64)
    for start in range(0, len(made), BLOCK):
        index[start : start + BLOCK] = _nearest(made[start : start + BLOCK].astype(np.float64), train)
    distance = np.array([_distance(row, train[at]) for row, at in zip(made, index, strict=True)], dtype=np.float64)
    return Nearest(index=index, distance=distance)


def measure_copied(made: Nearest, held_out: Nearest) -> Measure:
    """The share of made pictures nearer to a training picture than 95 of 100 held-out pictures are to theirs.

    Both are of the same training pictures. Of a model that makes as new pictures as the held-out ones it is 0.05.

    Raises:
        ValueError: there are none of either.
    """
    for name, nearest in (("made", made), ("held out", held_out)):
        if not len(nearest.distance):
            raise ValueError(f"{name}: no pictures to compare; {NONE}")
    return Measure.mean_of((made.distance < np.quantile(held_out.distance, NEAR)).astype(np.float64))


def nearest_texts(made: Sequence[Text], train: Sequence[Text], n: int) -> TextCopies:
    """How much of made texts stands in training texts, word for word.

    Raises:
        ValueError: there are no made texts, or none has n words.
    """
    whole = {tuple(text) for text in train}
    known = {gram for text in train for gram in _grams(text, n)}
    counts = [(sum(gram in known for gram in grams), len(grams)) for grams in (_grams(text, n) for text in made)]
    if not sum(length for _, length in counts):
        raise ValueError(f"made: none of {len(made)} texts has {n} words; {NONE}")
    longest = longest_runs(made, train)
    return TextCopies(
        known=Measure.ratio_of(counts),
        whole=Measure.mean_of([tuple(text) in whole for text in made]),
        longest=Measure.mean_of([float(run) for run in longest]),
        most=max(longest),
    )


def longest_runs(made: Sequence[Text], train: Sequence[Text]) -> list[int]:
    """How many words in a row of each made text stand in one training text.

    All runs of one word that both have are found, then those of two that begin with one of them, and so on: few are
    left soon.
    """
    runs, length = [0] * len(made), 0
    ours, theirs = _starts(made), _starts(train)
    while ours:
        longer, known = _continue(ours, made, length), _continue(theirs, train, length)
        shared = longer.keys() & known.keys()
        ours, theirs = ([found[run] for run in shared] for found in (longer, known))
        length += 1
        for at, _ in itertools.chain(*ours):
            runs[at] = length
    return runs


def _starts(texts: Sequence[Text]) -> list[list[Place]]:
    """Every place, as one run of no words."""
    return [[(at, start) for at, text in enumerate(texts) for start in range(len(text))]]


def _continue(runs: list[list[Place]], texts: Sequence[Text], length: int) -> dict[tuple[int, str], list[Place]]:
    """Where runs begin, by what they are with one word more: the number of the run of `length`, and the word."""
    found: dict[tuple[int, str], list[Place]] = {}
    for number, places in enumerate(runs):
        for at, start in places:
            if start + length < len(texts[at]):
                found.setdefault((number, texts[at][start + length]), []).append((at, start))
    return found


def _grams(text: Text, n: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def _quantiles(values: Float64[np.ndarray, "n"]) -> dict[float, float]:
    return {share: float(value) for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def _nearest(made: Float64[np.ndarray, "k d"], train: Float[np.ndarray, "m d"]) -> Int64[np.ndarray, "k"]:
    """The index of the least |x - y|^2 - |x|^2, a block of training pictures at a time."""
    index, least = np.zeros(len(made), dtype=np.int64), np.full(len(made), np.inf)
    for start in range(0, len(train), BLOCK):
        block = train[start : start + BLOCK].astype(np.float64)
        distance = (block**2).sum(1) - 2.0 * made @ block.T
        at = distance.argmin(1)
        value = distance[np.arange(len(made)), at]
        is_nearer: Bool[np.ndarray, "k"] = value < least
        index[is_nearer], least[is_nearer] = at[is_nearer] + start, value[is_nearer]
    return index


def _distance(left: Float[np.ndarray, "d"], right: Float[np.ndarray, "d"]) -> float:
    """Of differences, not of products: so it is 0 of equal rows."""
    return float(np.linalg.norm(left.astype(np.float64) - right.astype(np.float64)))
