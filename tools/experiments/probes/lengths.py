"""How long captions get that a model writes from nothing, of a run of configs/styles.toml on the captions alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tools.digits.judging import text_of
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject, ways_of
from tools.styles.evaluate import SEED, load_writer
from tools.styles.grammar import read_caption
from tools.styles.lengths import NUM_DATA, distance, law_of, mean_length, write_captions


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """mean_length in tokens, length_tv to the lengths of the data, and sentences, the share that are of the grammar.

    Of `probe.documents` captions in each way at each of the values; no way is guided.
    """
    writer = load_writer(subject.folder)
    data = law_of([len(writer.tokenizer.encode(caption)) for caption in write_captions(NUM_DATA)])
    for way, value, config in ways_of(writer.config, probe):
        sampling = dataclasses.replace(config.sampling, guidance={})
        asked = dataclasses.replace(writer, config=dataclasses.replace(config, sampling=sampling))
        canvases = asked.write(way or subject.arm, [[]] * probe.documents, SEED + subject.seed)
        law = law_of([len(canvas.tokens) - 1 for canvas in canvases])
        told = [read_caption(text_of(canvas, writer.tokenizer)) for canvas in canvases]
        yield Row(way, value, "mean_length", mean_length(law))
        yield Row(way, value, "length_tv", distance(law, data))
        yield Row(way, value, "sentences", sum(each is not None for each in told) / len(told))
