"""Which tokens are missing where, over all the ways in which the kept tokens may lie in the text."""

# Shapes: n tokens, m kept ones (= slots), b bag entries. With the text's end as one more kept token: s = n + 1 symbols,
# r = m + 1 rows. o options: a row and a place where its token may lie; c chances: a slot and a place that may be in it.

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from oneflow_dist.containers import Bags
from oneflow_dist.flow.draws import draw_systematically

NEGLIGIBLE = 1e-9  # chances up to here are rounding errors, or as good as
MOST_PLACES = 2**19  # of all slots together that are averaged over: thousands of equal tokens would take seconds


def averaged_bags(
    tokens: Int64[np.ndarray, "n"],
    keep: Bool[np.ndarray, "n"],
    is_bound: Bool[np.ndarray, "n"],
    rng: np.random.Generator,
) -> Bags:
    """The bags of the kept tokens, averaged over all alignments with the text: each is as likely as the drawn one.

        weight(slot, token) = sum of P(place[slot] < j < place[slot + 1]) over all j with tokens[j] = token

    Args:
        tokens: of the complete text, not negative.
        keep: the drawn alignment. Any other of the same kept tokens gives the same result.
        is_bound: where there is no choice: a kept token lies here, a deleted one is no place for any other. The first
            token is bound and kept.
        rng: for thinning, where there would be more entries than tokens in the text; else nothing is drawn.

    Returns:
        One entry for each slot and token, by slot, then by the first place in the text; at most as many as tokens. Of
        MOST_PLACES and more the drawn alignment stands for all.

    Numerics: float64 logarithms. The relative error of a probability grows with the logarithm of the number of
        alignments and is below 1e-12 up to 1e150 of them.
    Source: counting the embeddings of a subsequence; arXiv:2603.23507 does it for text.
    """
    symbols = np.append(np.where(is_bound, ~np.arange(tokens.size), tokens), ~tokens.size)  # a bound one has no equal
    text, kept = symbols.tolist(), symbols[np.append(keep, True)].tolist()
    earliest, latest = _earliest(text, kept), tokens.size - _earliest(text[::-1], kept[::-1])[::-1]
    if (latest - earliest).sum() >= MOST_PLACES:
        return Bags.of_tokens(tokens[~keep], (keep.cumsum() - 1)[~keep], len(kept) - 1)
    row, place, prob, empty_prob = _place_probs(symbols, earliest, latest)
    missing_count = np.diff(np.bincount(row, prob * place)) - 1.0

    slot, place, chance = _slot_chances(row, place, prob, earliest, latest)
    _, first, entry = np.unique(slot * (tokens.max() + 1) + tokens[place], return_index=True, return_inverse=True)
    weight, order = np.zeros(first.size), first.argsort()
    np.add.at(weight, entry, chance)
    left, weight = _thin(weight[order], tokens.size, rng)
    first = first[order[left]]
    return Bags(
        tokens=tokens[place[first]],
        slot=slot[first],
        weight=weight.astype(np.float32),
        missing_count=np.maximum(0.0, missing_count).astype(np.float32),
        filled_prob=np.maximum(0.0, 1.0 - empty_prob).astype(np.float32),
    )


def _earliest(text: list[int], kept: list[int]) -> Int64[np.ndarray, "r"]:
    """The first place that each kept symbol has in any alignment: taken greedily."""
    places, place = [], -1
    for symbol in kept:
        places.append(place := text.index(symbol, place + 1))
    return np.array(places)


def _place_probs(
    symbols: Int64[np.ndarray, "s"], earliest: Int64[np.ndarray, "r"], latest: Int64[np.ndarray, "r"]
) -> tuple[Int64[np.ndarray, "o"], Int64[np.ndarray, "o"], Float64[np.ndarray, "o"], Float64[np.ndarray, "r-1"]]:
    """All options by row and place, the probability of each, and for each slot that it is empty.

        prob(i, j) = before(i, j) after(i, j) / sum of the same over j
        before(i, j) = sum of before(i - 1, l) over l < j,    after(i, j) = sum of after(i + 1, l) over l > j

    Where all places of a row are ahead of those of the next the two are independent, and the counts start anew at 1.
    """
    if (earliest == latest).all():  # one alignment only
        return np.arange(latest.size), latest, np.ones(latest.size), (np.diff(latest) == 1).astype(np.float64)
    by_symbol = symbols.argsort(kind="stable")
    rank = by_symbol.argsort()
    size = rank[latest] - rank[earliest] + 1  # equal symbols have consecutive ranks
    end = size.cumsum()
    row = np.repeat(np.arange(size.size), size)
    place = by_symbol[np.arange(row.size) + (rank[latest] + 1 - end)[row]]

    key = row * symbols.size + place
    ahead = key.searchsorted(key - symbols.size) - 1  # the previous row's last option ahead of the place
    behind = key.searchsorted(key + symbols.size, side="right")  # the next row's first option behind it
    is_tied = latest[:-1] >= earliest[1:]
    tied = [(slice(end[i] - size[i], end[i]), slice(end[i], end[i + 1])) for i in np.flatnonzero(is_tied)]
    before, after = np.zeros((2, row.size))  # logarithms
    for here, there in tied:
        before[there] = np.logaddexp.accumulate(before[here])[ahead[there] - here.start]
    for here, there in reversed(tied):
        after[here] = np.logaddexp.accumulate(after[there][::-1])[there.stop - 1 - behind[here]]
    total = np.logaddexp.reduceat(before + after, end - size)

    joined = np.flatnonzero(key[behind[:-1]] == key[:-1] + symbols.size + 1)  # the next token at the next place
    slot, then = row[joined], behind[joined]
    empty = np.exp(before[joined] + after[then] - total[slot] - np.where(is_tied[slot], 0.0, total[slot + 1]))
    empty_prob = np.bincount(slot, empty, size.size - 1) * 1.0  # of nothing it would be whole numbers
    return row, place, np.exp(before + after - total[row]), empty_prob


def _slot_chances(
    row: Int64[np.ndarray, "o"],
    place: Int64[np.ndarray, "o"],
    prob: Float64[np.ndarray, "o"],
    earliest: Int64[np.ndarray, "r"],
    latest: Int64[np.ndarray, "r"],
) -> tuple[Int64[np.ndarray, "c"], Int64[np.ndarray, "c"], Float64[np.ndarray, "c"]]:
    """By slot and place, the chance that this place is in the slot: P(place[slot] < j) - P(place[slot + 1] <= j)."""
    size = latest[1:] - earliest[:-1]  # a slot's places are among earliest[slot] + 1 to latest[slot + 1]
    shift = size.cumsum() - latest[1:] - 1  # of a slot's place to its index among those of all slots
    change = np.zeros(size.sum())
    opens, closes = row < size.size, row > 0
    change[shift[row[opens]] + place[opens] + 1] += prob[opens]
    change[shift[row[closes] - 1] + place[closes]] -= prob[closes]
    chance = change.cumsum()
    some = np.flatnonzero(chance > NEGLIGIBLE)
    slot = np.repeat(np.arange(size.size), size)[some]
    return slot, some - shift[slot], chance[some]


def _thin(
    weight: Float64[np.ndarray, "e"], room: int, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "e"], Float64[np.ndarray, "b"]]:
    """Which entries are left, and their weights: all, or those that the lowest floor leaves of which few enough are.

    An entry below the floor is left with probability weight / floor, then at the floor: its expectation stays. One draw
    decides for all: the sum over any run of entries changes by less than the floor.

    Args:
        room: for so many; more than the sum of all weights, so that 1 is always high enough.
    """
    if len(weight) <= room:
        return np.ones(len(weight), dtype=bool), weight
    floors = np.sort(np.append(weight, 1.0))  # with one entry too many, as rounding may leave one more than expected
    left_at = np.arange(len(floors), 0, -1) + (floors.cumsum() - floors) / floors
    floor = floors[np.argmax(left_at <= room)]
    is_light = weight < floor
    left = ~is_light | draw_systematically(np.where(is_light, weight / floor, 0.0), rng)
    return left, np.maximum(weight[left], floor)
