"""Losses on held-out documents, by kind, and the bits that a model needs for a caption."""

from __future__ import annotations

from collections.abc import Iterator

from oneflow_dist.commands.bound import draw_texts
from oneflow_dist.commands.bound import measure as measure_bits
from oneflow_dist.commands.curves import AVERAGE, read_lines
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.trained import load_model
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject

INSTANTS = 8  # at which each text is looked at


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """What the run has measured of its average at the steps that `probe.values` names (none: the last), and bits.

    text, velocity: means over the sources; bits: of `probe.documents` captions given their images, or alone if the
    kinds are "text_only"; 0 documents: none.

    Raises:
        ValueError: the run has measured nothing at such a step.
    """
    lines = {line["step"]: line for line in read_lines(subject.folder) if any(key.startswith(AVERAGE) for key in line)}
    for step in map(int, probe.values or (max(lines, default=0),)):
        if step not in lines:
            raise ValueError(f"{subject.folder}: no held-out losses of step {step}; its validation.every_steps")
        x = float(step) if probe.values else None
        for figure, end in (("text", "/text"), ("velocity", "/velocity_image")):
            values = [v for key, v in lines[step].items() if key.startswith(AVERAGE) and key.endswith(end)]
            if values:
                yield Row("", x, figure, sum(values) / len(values))
    if probe.documents:
        yield Row("", None, "bits", bits_of(subject, probe))


def bits_of(subject: Subject, probe: Probe) -> float:
    """The mean over the sources that have the task."""
    model, config = load_model(subject.folder)
    task = probe.kinds[0] if probe.kinds else "image_to_text"
    found = []
    for source in load_mixture(config.validation.mixture):
        if task in source.tasks:
            texts = draw_texts(source, config, config.validation.mixture, probe.documents, task)
            found.append(measure_bits(model, config, texts, INSTANTS, source.name)[0])
    return sum(found) / len(found)
