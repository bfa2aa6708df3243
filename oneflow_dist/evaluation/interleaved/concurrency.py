"""What text and images have of each other while both are made: who came first, and whether the later one agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oneflow_dist.evaluation.answers import Answer, Part, read_png, strip_name
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.documents import Reading
from oneflow_dist.evaluation.interleaved.judge import Judge

NAMES = ("birth", "early", "agreement_early", "agreement_late", "beside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Firsts:
    """The steps of a document after which something can be read or seen that stays; None: nothing ever."""

    sentence: int | None
    image: int | None
    last: int


def measure_concurrency(answers: Sequence[Answer], readings: Sequence[Reading]) -> dict[str, Measure]:
    """Parts of the images, and of the text, of documents that tell when their tokens were born.

    birth: which part of the finished text is there when an image is born. early: how many images are born before the
    text right before them is whole; agreement_early and agreement_late: how many of these, and of the others, show it.
    beside: how many are being painted while text is still written.
    """
    rows = [_follow(answer, reading) for answer, reading in zip(answers, readings, strict=True)]
    pairs = {name: [row[name] for row in rows] for name in NAMES}
    return {name: Measure.ratio_of(own) for name, own in pairs.items() if any(whole for _, whole in own)}


def _follow(answer: Answer, reading: Reading) -> dict[str, tuple[float, float]]:
    births = [step for part in answer.parts if not part.image for step in part.born]
    found: dict[str, list[bool | float]] = {name: [] for name in NAMES}
    agrees, before = iter(reading.agrees), None
    for part in answer.parts:
        if not part.image:
            before = part
            continue
        is_right = next(agrees)
        if births and part.born:
            found["birth"].append(sum(step <= part.born[0] for step in births) / len(births))
            found["beside"].append(part.born[0] < max(births))
        if before is not None and before.born and part.born:
            is_early = part.born[0] < max(before.born)
            found["early"].append(is_early)
            found["agreement_early" if is_early else "agreement_late"].append(is_right)
        before = None
    return {name: (float(sum(values)), float(len(values))) for name, values in found.items()}


def find_firsts(answer: Answer, reading: Reading, judge: Judge) -> Firsts:
    """When the first text that the grammar knows was whole, and from when on an image was read as in the end.

    Images without a file of their states are recognised when they are done; those that never are, never.

    Raises:
        ValueError: a file of states is broken.
    """
    texts = [part for part in answer.parts if not part.image]
    sentences = [max(p.born) for p, label in zip(texts, reading.said, strict=True) if label is not None and p.born]
    images = [
        _recognised(answer, part, sight, judge)
        for part, sight in zip([p for p in answer.parts if p.image], reading.seen, strict=True)
        if part.born and part.end
    ]
    return Firsts(sentence=min(sentences, default=None), image=min(images, default=None), last=answer.steps)


def _recognised(answer: Answer, part: Part, sight: str, judge: Judge) -> int:
    path = answer.folder / strip_name(part.image)
    if not path.is_file():
        return part.end
    strip, width = read_png(path), read_png(answer.folder / part.image).width
    if strip.width < width:  # no state was kept, since a correction came in between
        return part.end
    states = [strip.crop((x, 0, x + width, strip.height)) for x in range(0, strip.width, width)]
    wrong = [number for number, seen in enumerate(judge.read(states)) if seen != sight]
    return part.born[0] + (wrong[-1] + 1 if wrong else 0)


def measure_firsts(firsts: Sequence[Firsts]) -> dict[str, Measure]:
    """Forwards until the first sentence and the first image, of documents that have one, and parts of all forwards."""
    measures = {}
    for name in ("sentence", "image"):
        own = [(float(step), float(first.last)) for first in firsts if (step := getattr(first, name)) is not None]
        if own:
            measures[f"forwards_to_{name}"] = Measure.mean_of([step for step, _ in own])
        if any(last for _, last in own):
            measures[f"part_to_{name}"] = Measure.ratio_of(own)
    return measures
