from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oneflow_dist.containers import Bags, NoisySample, PackedBatch
from oneflow_dist.data.packing import pack
from tests.launching import Launcher, Run, only_error
from tests.messages import names
from tests.toys import at_time, exact_heads
from tools.bound import sum_bound

# No letter twice, so that a text tells where its letters stood: then the bound of exact heads is the entropy.
DATA = {"": 0.1, "a": 0.2, "ab": 0.15, "cab": 0.25, "dcb": 0.2, "bacd": 0.1}
BOS = 9


class Exact:
    """The posterior of DATA at a known time."""

    def __init__(self, keep_prob: float, flatter: float = 1.0):
        self.keep_prob, self.flatter = keep_prob, flatter

    def __call__(self, batch: PackedBatch) -> Any:
        text = "".join("abcd"[token] for token in batch.tokens.tolist()[1:])
        heads = exact_heads(text, tuple(DATA.items()), at_time, self.keep_prob)
        pi, expected = (torch.tensor([head[n] for head in heads], dtype=torch.float64) for n in (0, 1))
        pairs = zip(batch.bag_tokens.tolist(), batch.bag_slot.tolist(), strict=True)
        nll = sum(-math.log(heads[slot][2]["abcd"[token]]) for token, slot in pairs)
        return SimpleNamespace(
            zero_logit=pi.logit().clamp(-60, 60),
            log_rate=(self.flatter * expected / (1.0 - pi).clamp(min=1e-30)).clamp(min=1e-30).log(),
            bag_loss=torch.tensor(nll),
        )


def noisy(text: str, kept: tuple[int, ...]) -> NoisySample:
    """A text with some letters kept; every slot is open."""
    slot = [sum(place < n for place in kept) for n in range(len(text)) if n not in kept]
    missing = ["abcd".index(text[n]) for n in range(len(text)) if n not in kept]
    tokens = np.array([BOS, *("abcd".index(text[place]) for place in kept)])
    return NoisySample(
        key="s",
        tokens=tokens,
        is_given=np.arange(len(tokens)) == 0,
        is_open=np.ones(len(tokens), dtype=bool),
        bags=Bags.of_tokens(np.array(missing, dtype=np.int64), np.array(slot, dtype=np.int64), len(tokens)),
        pieces=(),
        text_time=0.5,
    )


def mean_bound(flatter: float, steps: int = 200) -> float:
    """Over all texts, times and what may be kept."""
    total = 0.0
    for step in range(steps):
        keep_prob = (step + 0.5) / steps
        for text, prob in DATA.items():
            for count in range(len(text) + 1):
                chance = keep_prob**count * (1.0 - keep_prob) ** (len(text) - count)
                for kept in itertools.combinations(range(len(text)), count):
                    batch = pack([noisy(text, kept)], None)
                    model: Any = Exact(keep_prob, flatter)
                    total += prob * chance * sum_bound(model, batch, 1.0 / (1.0 - keep_prob)) / steps
    return total


def test_exact_heads_need_the_entropy_of_the_data_and_others_more() -> None:
    entropy = -sum(prob * math.log(prob) for prob in DATA.values())
    assert mean_bound(1.0) == pytest.approx(entropy, abs=2e-3)
    assert mean_bound(1.3) > entropy + 0.02
    assert mean_bound(0.7) > entropy + 0.02


def test_tokens_of_one_slot_that_are_equal_are_one_event_of_twice_the_rate() -> None:
    """Expected are k of a token that Q gives all, and k are missing: nothing is lost."""
    sample = noisy("aa", ())
    model: Any = lambda batch: SimpleNamespace(  # noqa: E731
        zero_logit=torch.tensor([-60.0]), log_rate=torch.tensor([math.log(2.0)]), bag_loss=torch.zeros(())
    )
    assert sum_bound(model, pack([sample], None), 3.0) == pytest.approx(0.0, abs=1e-6)


def test_a_run_says_its_bits_for_each_source(launcher: Launcher, unbroken: Run, digits: Path, tmp_path: Path) -> None:
    mixture = tmp_path / "held_out.yaml"
    entry = f"shards: {digits}/single-heldout-000000.tar\n    weight: 1\n    tasks: {{text_only: 1}}\n"
    mixture.write_text(f"sources:\n  captions:\n    {entry}")
    end = launcher.run("tools/bound.py", unbroken.folder, "--mixture", mixture, "--documents", "20", "--instants", "4")
    assert end.code == 0, end.stderr
    (line,) = [line for line in end.stdout.splitlines() if "bits a token" in line]
    assert line.startswith("captions: at most ")
    assert 0.5 < float(line.split()[3]) < 20.0


def test_a_run_without_held_out_texts_asks_for_them(launcher: Launcher, unbroken: Run) -> None:
    end = launcher.run("tools/bound.py", unbroken.folder)
    assert end.code == 2
    assert names(only_error(end), "validation.mixture", "--mixture")
