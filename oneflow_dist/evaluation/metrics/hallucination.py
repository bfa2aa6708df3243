"""CHAIR: which of the things that captions name are not in the picture?"""

# Shapes: n captions.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.tokenizer import tokenize

PLURALS = (
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("es", ""),
    ("s", ""),
)  # men, mice, geese: a synonym each, where they are needed


def measure_chair(
    captions: Sequence[str], objects: Sequence[Collection[str]], synonyms: Mapping[str, str]
) -> dict[str, Measure]:
    """`chair_i`, `chair_s` and `recall` of captions.

    `chair_i` is the share of mentions that are of no object of the picture, each mention counted; `chair_s` the share
    of captions with such a mention; `recall` the share of the pictures' objects that are mentioned.

    Args:
        objects: what is in each picture.
        synonyms: the object that a word or a phrase of two words, in small letters, speaks of. A phrase goes before
            its words: with "baby bird": "bird", no baby is mentioned. Objects speak of themselves. A word that is not
            there is tried without an ending of the plural, a phrase with that of its second word.

    Raises:
        ValueError: no caption, not as many as pictures, or an object that synonyms do not lead to.

    Source: arXiv:1809.02156. Its own program knows irregular plurals; its table of synonyms is of COCO's 80 objects.
    """
    if len(captions) != len(objects) or len(captions) == 0:
        raise ValueError(
            f"chair: {len(captions)} captions of {len(objects)} pictures; give one of each, of one or more"
        )
    table = {name: name for name in synonyms.values()} | dict(synonyms)
    for picture, present in enumerate(objects):
        if unknown := sorted(set(present) - set(synonyms.values())):
            raise ValueError(f"chair, picture {picture}: no synonym leads to {unknown[0]!r}; add it to synonyms")
    rows = np.array([_count(*pair, table) for pair in zip(captions, objects, strict=True)], dtype=np.float64)
    return {
        "chair_i": Measure(rows=rows, combine=_invented_mentions),
        "chair_s": Measure.mean_of(np.sign(rows[:, 1])),
        "recall": Measure(rows=rows, combine=_recall),
    }


def _count(caption: str, present: Collection[str], table: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Mentions, of these the invented ones, objects of the picture, of these the mentioned ones."""
    mentioned = _mentions(tokenize(caption), table)
    invented = [name for name in mentioned if name not in present]
    return len(mentioned), len(invented), len(set(present)), len(set(present) & set(mentioned))


def _mentions(words: Sequence[str], table: Mapping[str, str]) -> list[str]:
    names, place = [], 0
    while place < len(words):
        phrases = (words[place : place + length] for length in (2, 1))
        found = [(name, len(phrase)) for phrase in phrases if (name := _look_up(" ".join(phrase), table)) is not None]
        names += [name for name, _ in found[:1]]
        place += found[0][1] if found else 1
    return names


def _look_up(phrase: str, table: Mapping[str, str]) -> str | None:
    singulars = (phrase.removesuffix(ending) + instead for ending, instead in PLURALS if phrase.endswith(ending))
    return next((table[form] for form in (phrase, *singulars) if form in table), None)


def _invented_mentions(rows: Float64[np.ndarray, "n 4"]) -> float:
    mentions, invented, _, _ = rows.sum(0)
    return float(invented / max(mentions, 1.0))


def _recall(rows: Float64[np.ndarray, "n 4"]) -> float:
    _, _, present, found = rows.sum(0)
    return float(found / max(present, 1.0))
