"""What a data set is like, in numbers."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oneflow_dist.prepare.samples import Sample
from oneflow_dist.prepare.texts import count_scripts

PERCENTILES = (0, 50, 90, 99, 100)
ASPECTS = ((0.5, "2:1 tall"), (0.8, "tall"), (1.25, "square"), (2.0, "wide"), (math.inf, "2:1 wide"))
VALUES = re.compile(r" [(\[].*")  # of a reason: what differs from one to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of all samples that are used, and of the problems."""

    num_pictures: int
    num_texts: int
    done: dict[str, int]  # what was done to pictures and texts, and to how many
    problems: dict[str, list[str]]  # reason -> names
    sides: Counter[int]  # the shorter side of a picture, as the power of two below it
    aspects: dict[str, int]
    tokens: tuple[int, ...]  # in a caption or text, at PERCENTILES; empty without any
    repeated: float  # share of captions that stand at several pictures
    scripts: Counter[str]


def measure(samples: Sequence[Sample], problems: Sequence[Mapping[str, str]], lengths: Iterable[int]) -> Statistics:
    """Count everything.

    Args:
        lengths: in tokens, of each caption and text.
    """
    pictures = [picture for sample in samples for picture in sample.pictures]
    done = Counter(change for picture in pictures for change in picture.done)
    done += Counter(change for sample in samples for change in sample.done)
    reasons: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        reasons[VALUES.sub("", problem["reason"])].append(problem["name"])
    captions = Counter(caption for sample in samples for caption in sample.captions)
    counted = list(lengths)
    ratios = [picture.width / picture.height for picture in pictures]
    aspects = Counter(next(name for most, name in ASPECTS if ratio <= most) for ratio in ratios)
    return Statistics(
        num_pictures=len(pictures),
        num_texts=sum(len(sample.texts) for sample in samples),
        done=dict(done.most_common()),
        problems=dict(sorted(reasons.items(), key=lambda entry: -len(entry[1]))),
        sides=Counter(1 << int(math.log2(min(picture.width, picture.height))) for picture in pictures),
        aspects={name: aspects[name] for _, name in ASPECTS if aspects[name]},
        tokens=tuple(int(value) for value in np.percentile(counted, PERCENTILES)) if counted else (),
        repeated=sum(count for count in captions.values() if count > 1) / max(1, captions.total()),
        scripts=count_scripts(text for sample in samples for text in sample.texts),
    )
