"""Text that a model writes from nothing: how likely by its training text, how repetitive, how much of it is copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.sampler import generate
from oneflow_dist.trained import load_model
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject, ways_of
from tools.experiments.trigram import Context, Tokens, Trigrams, grams_of, share_known, share_repeated
from tools.shards import read_records

SEED = 3000  # of what is written, with that of the run
RUN = 4  # tokens in a row that are looked for in the training text


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """What `judge` finds of so many texts, in every way and with every value."""
    model, config = load_model(subject.folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    training = read_tokens(config.data.mixture, tokenizer)
    trigrams, known = learn(training, tokenizer)
    for way, x, varied in ways_of(config, probe):
        canvases = [
            blank_canvas([], tokenizer, config.modality, SEED + subject.seed, number)
            for number in range(probe.documents)
        ]
        texts = [canvas.tokens[1:].tolist() for canvas in generate(model, canvases, varied, tokenizer)]
        yield from (Row(way, x, figure, value) for figure, value in judge(texts, trigrams, known).items())


def learn(training: Sequence[Tokens], tokenizer: Tokenizer) -> tuple[Trigrams, set[Context]]:
    """The trigrams of training texts, and all of their runs."""
    trigrams = Trigrams.of(training, tokenizer.vocab_size, tokenizer.eos)
    return trigrams, {gram for text in training for gram in grams_of(text, RUN)}


def judge(texts: Sequence[Tokens], trigrams: Trigrams, known: set[Context]) -> dict[str, float]:
    """Bits per token, shares of trigrams that a text has had before and of runs that stand in training, mean length."""
    return {
        "bits": trigrams.bits(texts),
        "repeats": share_repeated(texts),
        "runs": share_known(texts, known, RUN),
        "tokens": float(np.mean([len(text) for text in texts])),
    }


def read_tokens(mixture: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The texts of all sources of a mixture of .txt samples."""
    shards = [source.shards for source in load_mixture(mixture)]
    return [tokenizer.encode(record.files["txt"].decode()) for own in shards for record in read_records(own)]
