"""What the training text says of each token of the vocabulary: how frequent it is, and how hard to guess."""

# Shapes: V vocabulary of the tokenizer.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from oneflow_dist.config import Config
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.noising import is_deletable
from oneflow_dist.validation import draw_documents

NUM_DOCUMENTS = 2048  # of each source that are looked at, the same in every run
Texts = list[tuple[float, list[tuple[int, int]]]]  # of each document: its weight; pairs of a target token and the last
Measure = Callable[[Texts, int], Float[np.ndarray, "V"]]

_found: dict[tuple[str, str, str], Float[np.ndarray, "V"]] = {}


def measure_once(measure: Measure, config: Config) -> Float[np.ndarray, "V"]:
    """A measure of the text of a config's mixture, taken once in a process."""
    key = measure.__name__, config.data.mixture, config.data.tokenizer
    if key not in _found:
        size = load_tokenizer(config.data.tokenizer, config.modality).vocab_size
        _found[key] = measure(list(read_texts(config)), size)
    return _found[key]


def read_texts(config: Config) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """The targets of NUM_DOCUMENTS of each source, all of which weigh as much as the source."""
    drawn = replace(config, validation=replace(config.validation, samples=NUM_DOCUMENTS))
    for source in load_mixture(config.data.mixture):
        samples = draw_documents(drawn, source)
        for sample in samples:
            at = np.flatnonzero(is_deletable(sample))
            pairs = zip(sample.tokens[at].tolist(), sample.tokens[at - 1].tolist(), strict=True)
            yield source.weight / len(samples), list(pairs)


def frequency(texts: Texts, vocab_size: int) -> Float[np.ndarray, "V"]:
    """The share of each token among all."""
    counts = np.zeros(vocab_size)
    for weight, pairs in texts:
        np.add.at(counts, [token for token, _ in pairs], weight)
    return counts / counts.sum()


def ease(texts: Texts, vocab_size: int) -> Float[np.ndarray, "V"]:
    """Mean log2 probability of each token after the one before it; -inf of those that do not occur.

    The probability is that of the counts of pairs, with one more observation of the token's share among all:

        p(a | b) = (count(b, a) + p(a)) / (count(b) + 1)
    """
    share = frequency(texts, vocab_size)
    of_pair = Counter(pair for _, pairs in texts for pair in pairs)
    of_last = Counter(last for _, pairs in texts for _, last in pairs)
    total, number = np.zeros((2, vocab_size))
    for weight, pairs in texts:
        for token, last in pairs:
            prob = (of_pair[token, last] + share[token]) / (of_last[last] + 1.0)
            total[token] += weight * np.log2(prob)
            number[token] += weight
    return np.where(number > 0.0, total / np.maximum(number, 1e-300), -np.inf)
