"""Whether documents are right: number, place and order of their images, and what these show."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneflow_dist.evaluation.answers import Answer
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.scenes import Grammar

Counted = tuple[float, float]  # how many are right, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reader finds in a document."""

    said: tuple[str | None, ...]  # the label of each text; None: it says nothing that the grammar knows
    named: tuple[str | None, ...]  # of each image the label of the text right before it; None: there is none
    seen: tuple[str, ...]  # of each image what it shows
    alternates: bool  # each text is followed by one image

    @property
    def agrees(self) -> list[bool]:
        """Of each image, whether it shows what the text before it says."""
        return [name == sight for name, sight in zip(self.named, self.seen, strict=True)]


def read_document(answer: Answer, grammar: Grammar, judge: Judge) -> Reading:
    """Texts by the grammar, images by the judge."""
    labels = [None if part.image else grammar.read(part.text) for part in answer.parts]
    is_image = [part.image != "" for part in answer.parts]
    before = [None, *labels]
    return Reading(
        said=tuple(label for label, image in zip(labels, is_image, strict=True) if not image),
        named=tuple(label for label, image in zip(before, is_image, strict=False) if image),
        seen=tuple(judge.read(answer.pictures())),
        alternates=is_image == [False, True] * (len(is_image) // 2) and len(is_image) % 2 == 0,
    )


def measure_documents(
    fields: Sequence[Mapping[str, Any]], readings: Sequence[Reading], grammar: Grammar
) -> dict[str, Measure]:
    """How many documents, images and pairs of images are right.

    number, place, order, text and document are parts of the documents: there is an image for each text; each stands
    right after its text; what the images show, in their order, answers the question; so do the texts; all of these,
    and every image shows its text. agreement is a part of the images, as are its kinds by attribute, and matching of
    the pairs of images whose texts say that they show the same. Images that are too many agree with nothing.
    """
    rows = [_judge(own, reading, grammar) for own, reading in zip(fields, readings, strict=True)]
    wholes = ("number", "place", "order", "text", "document")
    measures = {name: Measure.mean_of([row[name][0] for row in rows]) for name in wholes}
    for name in [name for name in rows[0] if name not in wholes]:
        if any(row[name][1] for row in rows):
            measures[name] = Measure.ratio_of([row[name] for row in rows])
    return measures


def _judge(fields: Mapping[str, Any], reading: Reading, grammar: Grammar) -> dict[str, Counted]:
    said = [label for label in reading.said if label is not None]
    is_text = len(said) == len(reading.said) and bool(said) and grammar.accepts(said, fields)
    number, images = len(reading.seen) == len(reading.said) > 0, float(len(reading.seen))
    is_all = is_text and reading.alternates and all(reading.agrees)
    row: dict[str, Counted] = {
        "number": (number, 1.0),
        "place": (reading.alternates and number, 1.0),
        "order": (bool(reading.seen) and grammar.accepts(reading.seen, fields), 1.0),
        "text": (is_text, 1.0),
        "document": (is_all, 1.0),
        "agreement": (float(sum(reading.agrees)), images),
    }
    for place, attribute in enumerate(grammar.attributes):
        pairs = zip(reading.named, reading.seen, strict=True)
        right = sum(name is not None and name.split()[place] == sight.split()[place] for name, sight in pairs)
        row[f"agreement_{attribute}"] = (float(right), images)
    if grammar.attributes:
        same = [
            (a, b)
            for a, b in itertools.combinations(range(len(reading.named)), 2)
            if reading.named[a] is not None and reading.named[a] == reading.named[b]
        ]
        row["matching"] = (float(sum(reading.seen[a] == reading.seen[b] for a, b in same)), float(len(same)))
    return row
