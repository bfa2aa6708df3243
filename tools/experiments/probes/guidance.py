"""What guidance adds to captions of unseen digits, of a run of configs/styles.toml: by weight, in two ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tools.digits.judging import text_of
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject
from tools.styles.evaluate import WAYS, draw_pictures, load_writer
from tools.styles.evaluate import measure as measure_texts

SEED = 2000  # of captions, with that of the run; the pictures are the same for all
FIGURES = ("right", "wrong", "sentences", "digit")


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """Right and wrong statements of a caption, and the shares of captions that are sentences and that name the digit.

    The values of the probe are weights, of which 1 is no guidance; its documents are captions.

    Raises:
        ValueError: the run has learnt something else than styles.
    """
    writer = load_writer(subject.folder)
    styles, prompts = draw_pictures(probe.documents)
    for way, names in WAYS.items():
        for weight in probe.values:
            sampling = dataclasses.replace(writer.config.sampling, guidance=dict.fromkeys(names, weight))
            own = dataclasses.replace(writer, config=dataclasses.replace(writer.config, sampling=sampling))
            canvases = own.write(f"{way} {weight:g}", prompts, SEED + subject.seed)
            found = measure_texts([text_of(canvas, writer.tokenizer) for canvas in canvases], styles)
            yield from (Row(way, weight, figure, found[figure][0]) for figure in FIGURES)
