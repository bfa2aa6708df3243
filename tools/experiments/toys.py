"""Small worlds of text in which exact heads are known, and the sampler's law after each step: nothing is random."""

# Shapes: N slots of all texts of a law; n slots of one.

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from oneflow_dist.canvas import Canvas
from oneflow_dist.containers import Prediction
from oneflow_dist.flow.draws import draw_systematically
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.making import MOVING_TOLERANCE
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers import insertion
from oneflow_dist.writers.insertion import draw_fires
from oneflow_dist.writers.writer import step_size

LETTERS = "ab"
VAR = {"": 0.05, "a": 0.15, "b": 0.10, "ab": 0.20, "ba": 0.10, "aab": 0.15, "abb": 0.10, "baba": 0.15}
FIX = {"aab": 0.3, "abb": 0.2, "bab": 0.25, "bba": 0.25}
LINEAR = KeepSchedule(kind="linear")
LEAST = 1e-9  # texts that are less likely are left out
Law = dict[str, float]  # of a text: its probability
Weight = Callable[[str, str, float], float]  # of a whole text where a part of it is there, at a keep probability
Say = Callable[[list[Canvas], Prediction, SamplingConfig], Prediction]  # what the sampler is told of exact heads


def settings_of(steps: int, **changes: Any) -> SamplingConfig:
    """The sampler's defaults, without guidance."""
    plain: dict[str, Any] = {"every_steps": 0, "prompts": (), "steps": steps, "guidance": {}, "temperature": 1.0}
    return SamplingConfig(**plain | {"top_p": 1.0, "max_rows": 99} | changes)


def at_time(whole: str, there: str, keep_prob: float) -> float:
    """What the posterior weighs at a keep probability: heads that know the time."""
    return (1.0 - keep_prob) ** (len(whole) - len(there))


def at_any_time(whole: str, there: str, keep_prob: float) -> float:
    """The same averaged over tau ~ U[0, 1], linear schedule: heads that do not know it."""
    n, m = len(whole), len(there)
    return math.factorial(m) * math.factorial(n - m) / math.factorial(n + 1)


def at_any_extended_time(whole: str, there: str, keep_prob: float) -> float:
    """The same over tau ~ U[0, 2]: half of the texts are complete."""
    return 0.5 * at_any_time(whole, there, keep_prob) + 0.5 * (len(whole) == len(there))


def at_time_of_letters(exponents: dict[str, float]) -> Weight:
    """Heads that know the time t where a letter a is there with probability t ** exponents[a], at t = keep_prob."""

    def weigh(whole: str, there: str, keep_prob: float) -> float:
        missing = Counter(whole) - Counter(there)
        return math.prod((1.0 - keep_prob ** exponents[letter]) ** count for letter, count in missing.items())

    return weigh


def as_they_are(canvases: list[Canvas], prediction: Prediction, own: SamplingConfig) -> Prediction:
    """The sampler is told what exact heads say."""
    return prediction


class Recorder(np.random.Generator):
    """A generator that never lets a slot fire, and keeps the probability with which it would have."""

    def random(self, size: int) -> Recorder:  # type: ignore[override]
        return self

    def __lt__(self, prob: np.ndarray) -> np.ndarray:
        self.prob = prob
        return np.zeros(len(prob), dtype=bool)


Heads = list[tuple[float, float, dict[str, float]]]  # of each slot: pi, expected count, Q


@functools.cache
def exact_heads(text: str, data: tuple[tuple[str, float], ...], weight: Weight, keep_prob: float) -> Heads:
    """Posterior means over all texts and alignments that `text` may have come from."""
    total = 0.0
    empty = np.zeros(len(text) + 1)
    counts: list[dict[str, float]] = [defaultdict(float) for _ in range(len(text) + 1)]
    for whole, prob in data:
        for places in itertools.combinations(range(len(whole)), len(text)):
            if "".join(whole[place] for place in places) != text:
                continue
            own = prob * weight(whole, text, keep_prob)
            total += own
            edges = [-1, *places, len(whole)]
            for slot, (before, after) in enumerate(itertools.pairwise(edges)):
                bag = whole[before + 1 : after]
                empty[slot] += own * (not bag)
                for letter in bag:
                    counts[slot][letter] += own
    if total == 0.0:  # the text cannot become one of the data: nothing is missing
        return [(1.0, 0.0, {})] * (len(text) + 1)
    heads = []
    for slot, bag_counts in enumerate(counts):
        expected = sum(bag_counts.values())
        probs = {letter: count / expected for letter, count in bag_counts.items() if count > 0.0}
        heads.append((empty[slot] / total, expected / total, probs))
    return heads


def predict(flat: Heads) -> Prediction:
    """What a model says that has these heads in its N slots; their hidden rows [N, 2] are the logits of LETTERS."""
    pi = torch.tensor([pi for pi, _, _ in flat], dtype=torch.float64)
    rate = torch.tensor([count / (1.0 - pi) if count > 0.0 else 1.0 for pi, count, _ in flat], dtype=torch.float64)
    probs = torch.tensor([[q.get(letter, 0.0) for letter in LETTERS] if q else [1.0, 1.0] for _, _, q in flat])
    return Prediction(
        zero_logit=pi.logit().clamp(-80, 80).float(),
        log_rate=rate.log().float(),
        bag_loss=torch.zeros(()),
        velocity=(),
        slot_hidden=probs.log(),
    )


def canvas_of(text: str, time: float) -> Canvas:
    """A text as it stands at a time, every slot open."""
    return Canvas(
        key=text,
        rng=Recorder(np.random.PCG64(0)),
        text_time=time,
        tokens=np.arange(len(text) + 1),
        is_open=np.ones(len(text) + 1, dtype=bool),
        born=np.minimum(np.arange(len(text) + 1), 1),
        making={},
        block_ends=(1,),
    )


def step_all(
    law: Law, heads: dict[str, Heads], time: float, own: SamplingConfig, schedule: KeepSchedule, say: Say = as_they_are
) -> Law:
    """The law of the text after one step of the sampler, from the law before it."""
    canvases = [canvas_of(text, time) for text in law]
    said = say(canvases, predict([slot for text in law for slot in heads[text]]), own)
    probs = [dict(zip(LETTERS, row, strict=True)) for row in said.slot_hidden.double().softmax(-1).tolist()]
    fires = fire_laws(canvases, said, own, schedule)
    after: dict[str, float] = defaultdict(float)
    first = 0
    for text, prob, of_text in zip(law, law.values(), fires, strict=True):
        q_of = probs[first : first + len(text) + 1]
        first += len(text) + 1
        for fire, fire_prob in of_text.items():
            if prob * fire_prob <= 1e-12:
                continue
            tokens = [q.items() if is_fired else [("", 1.0)] for is_fired, q in zip(fire, q_of, strict=True)]
            for combination in itertools.product(*tokens):
                inserted = [letter for letter, _ in combination]
                longer = inserted[0] + "".join(old + new for old, new in zip(text, inserted[1:], strict=True))
                after[longer] += prob * fire_prob * math.prod(p for _, p in combination)
    return {text: prob for text, prob in after.items() if prob > LEAST}


Fires = dict[tuple[bool, ...], float]  # which slots get a token, and how likely that is


def fire_laws(
    canvases: list[Canvas], prediction: Prediction, own: SamplingConfig, schedule: KeepSchedule
) -> list[Fires]:
    """What the sampler may draw for each document, with its probability."""
    found: list[Fires] = []

    def record(prob: np.ndarray, rng: Recorder) -> np.ndarray:
        found.append(systematic_law(prob))
        return np.zeros(len(prob), dtype=bool)

    with patch.object(insertion, "draw_systematically", record):
        draw_fires(canvases, prediction, own, schedule)
    return found or [independent_law(canvas.rng.prob) for canvas in canvases]  # type: ignore[attr-defined]


def independent_law(prob: np.ndarray) -> Fires:
    """Each slot for itself, with the probabilities [n]."""
    return {
        fire: math.prod(p if is_fired else 1.0 - p for p, is_fired in zip(prob.tolist(), fire, strict=True))
        for fire in itertools.product((False, True), repeat=len(prob))
    }


def systematic_law(prob: np.ndarray) -> Fires:
    """Of the one draw between all the values at which the outcome changes, for the probabilities [n]."""
    edges = np.unique(np.concatenate([[0.0, 1.0], -np.cumsum(prob) % 1.0]))
    law: Fires = defaultdict(float)
    for low, high in itertools.pairwise(edges.tolist()):
        rng = SimpleNamespace(random=lambda middle=0.5 * (low + high): middle)
        law[tuple(draw_systematically(prob, rng).tolist())] += high - low  # type: ignore[arg-type]
    return law


def law_after(
    data: Law,
    schedule: KeepSchedule,
    weight: Weight,
    own: SamplingConfig,
    law: Law | None = None,
    time: float = 0.0,
    say: Say = as_they_are,
) -> Law:
    """The law of the text at its end, from one at some time; from nothing, unless told."""
    law = law or {"": 1.0}
    while time < 1.0 - MOVING_TOLERANCE:
        keep_prob = schedule.keep_prob(time)
        heads = {text: exact_heads(text, tuple(data.items()), weight, keep_prob) for text in law}
        law = step_all(law, heads, time, own, schedule, say)
        time += step_size(canvas_of("", time), own)
    return law


def noised(law: Law, keep_prob: float) -> Law:
    """The law after each letter has stayed with a probability."""
    after: dict[str, float] = defaultdict(float)
    for text, prob in law.items():
        for kept in itertools.product((False, True), repeat=len(text)):
            way = math.prod(keep_prob if is_kept else 1.0 - keep_prob for is_kept in kept)
            after["".join(letter for letter, is_kept in zip(text, kept, strict=True) if is_kept)] += prob * way
    return dict(after)


def mean_length(law: Law) -> float:
    """The expected number of letters."""
    return sum(len(text) * prob for text, prob in law.items())


def distance(law: Law, data: Law) -> float:
    """Total variation."""
    return 0.5 * sum(abs(law.get(text, 0.0) - data.get(text, 0.0)) for text in set(law) | set(data))
