"""How near are captions to what people wrote of the same pictures: BLEU, ROUGE-L and CIDEr as COCO counts them?"""

# Shapes: n items.

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.tokenizer import tokenize

ORDERS = 4  # n-grams of one to four words
ROUGE_BETA = 1.2  # how much recall weighs against precision
CIDER_SIGMA = 6.0  # words by which lengths may differ
CIDER_SCALE = 10.0
TINY, SMALL = 1e-15, 1e-9  # of pycocoevalcap, so that nothing over nothing is nothing

Words = Sequence[str]
Counts = Counter[tuple[str, ...]]
Weights = tuple[dict[tuple[str, ...], float], ...]  # of the n-grams of each order


def measure_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Measure]:
    """`bleu_1` to `bleu_4`, `rouge_l` and `cider` of raw captions.

    Args:
        references: of each candidate, one or more.

    Raises:
        ValueError: fewer than two items, an item without references, or lists that do not belong together.
    """
    check_references(candidates, references)
    words = [tokenize(candidate) for candidate in candidates]
    return measure_tokens(words, [[tokenize(text) for text in texts] for texts in references])


def measure_tokens(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, Measure]:
    """The same of captions that are cut into words already.

    Raises:
        ValueError: as `measure_captions`.
    """
    check_references(candidates, references)
    if len(candidates) < 2:
        raise ValueError(
            f"captions: {len(candidates)} item, but cider weighs words by how many items have them; give 2 or more"
        )
    rows = np.array([_count_bleu(*pair) for pair in zip(candidates, references, strict=True)], dtype=np.float64)
    bleu = {f"bleu_{n}": Measure(rows=rows, combine=functools.partial(_bleu, n)) for n in range(1, ORDERS + 1)}
    rouge = [_rouge(*pair) for pair in zip(candidates, references, strict=True)]
    return bleu | {"rouge_l": Measure.mean_of(rouge), "cider": _measure_cider(candidates, references)}


def check_references(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Whether each candidate has its references.

    Raises:
        ValueError: it has not.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"captions: {len(candidates)} candidates, but references of {len(references)} items; give those of each"
        )
    for item, texts in enumerate(references):
        if isinstance(texts, str) or len(texts) == 0:
            raise ValueError(f"captions, item {item}: references are {texts!r}; give a list of at least one")


def _ngrams(words: Words) -> Counts:
    starts = ((n, start) for n in range(1, ORDERS + 1) for start in range(len(words) - n + 1))
    return Counter(tuple(words[start : start + n]) for n, start in starts)


def _count_bleu(candidate: Words, references: Sequence[Words]) -> list[int]:
    """N-grams of each order that a reference has, too, then all of them, words, words of the closest reference."""
    most = functools.reduce(lambda counts, words: counts | _ngrams(words), references, Counts())
    shared = _ngrams(candidate) & most
    correct = [sum(count for ngram, count in shared.items() if len(ngram) == n) for n in range(1, ORDERS + 1)]
    length = len(candidate)
    closest = min((abs(len(words) - length), len(words)) for words in references)[1]
    return [*correct, *(max(0, length - n) for n in range(ORDERS)), length, closest]


def _bleu(order: int, rows: Float64[np.ndarray, "n 10"]) -> float:
    """Precision, the geometric mean over orders, times the brevity penalty, all of sums over the items.

    Source: Papineni et al. 2002, doi 10.3115/1073083.1073135.
    """
    sums = rows.sum(0)
    precisions = (sums[:order] + TINY) / (sums[ORDERS : ORDERS + order] + SMALL)
    ratio = (sums[-2] + TINY) / (sums[-1] + SMALL)
    return float(np.prod(precisions) ** (1.0 / order) * math.exp(min(0.0, 1.0 - 1.0 / ratio)))


def _rouge(candidate: Words, references: Sequence[Words]) -> float:
    """F of the longest common subsequence; the best precision and the best recall may be of different references.

    Source: Lin 2004, https://aclanthology.org/W04-1013.
    """
    candidate, references = candidate or [""], [words or [""] for words in references]  # there, nothing is a word
    common = [_longest_common(candidate, words) for words in references]
    precision = max(common) / len(candidate)
    recall = max(length / len(words) for length, words in zip(common, references, strict=True))
    if precision == 0.0:
        return 0.0
    return (1.0 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common(left: Words, right: Words) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        before = lengths
        lengths = [0]
        for place, other in enumerate(right):
            lengths.append(before[place] + 1 if word == other else max(before[place + 1], lengths[place]))
    return lengths[-1]


def _measure_cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Measure:
    """CIDEr-D. What words weigh, of all references, stays as it is where items are drawn anew.

    Source: arXiv:1411.5726.
    """
    counted = [[_ngrams(words) for words in texts] for texts in references]
    seen_in = Counter(ngram for counts in counted for ngram in set().union(*counts))
    weigh = functools.partial(_weigh, seen_in, math.log(len(candidates)))
    scores = []
    for words, texts, counts in zip(candidates, references, counted, strict=True):
        own = weigh(_ngrams(words))
        alike = (
            _similarity(own, weigh(other), _length(words) - _length(text))
            for text, other in zip(texts, counts, strict=True)
        )
        scores.append(CIDER_SCALE * sum(alike) / len(texts))
    return Measure.mean_of(scores)


def _length(words: Words) -> int:
    return max(0, len(words) - 1)  # pairs of words: pycocoevalcap counts them


def _weigh(seen_in: Counts, log_items: float, counts: Counts) -> Weights:
    weights: Weights = tuple({} for _ in range(ORDERS))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * (log_items - math.log(max(1, seen_in[ngram])))
    return weights


def _similarity(candidate: Weights, reference: Weights, longer: int) -> float:
    """Cosines, clipped to the weights of the reference, the mean over orders, less where lengths differ."""
    penalty = math.exp(-(longer**2) / (2.0 * CIDER_SIGMA**2))
    return penalty * sum(map(_cosine, candidate, reference)) / ORDERS


def _cosine(own: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    norms = _norm(own.values()) * _norm(other.values())
    shared = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
    return shared / norms if norms else 0.0


def _norm(weights: Iterable[float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights))
