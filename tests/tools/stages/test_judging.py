from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.config import load_config
from oneflow_dist.model.oneflow import OneFlow
from tools.digits.grammar import WORDS
from tools.shards import write_shards
from tools.stages import judging
from tools.stages.conversations import describe, talk
from tools.stages.pictures import SIDE, SMALL, enlarge

NARROW = ("model.width=24", "model.num_layers=1", "model.mlp_width=24", "model.vocab_size=512", "data.tokenizer=bytes")
BLACK = enlarge(np.zeros((8, 8), np.uint8), SIDE)


@pytest.fixture(scope="module")
def speaker(root: Path, make_model: Callable[..., OneFlow]) -> judging.Speaker:
    """A model that has learnt nothing."""
    config = load_config(
        root / "configs/stages/d_instruct.toml", [*NARROW, "sampling.steps=2", "sampling.max_rows=128"]
    )
    return judging.Speaker.of(make_model(config, noise=0.02), config)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions about rows, and pictures to describe."""
    small, rng = enlarge(np.zeros((8, 8), np.uint8), SMALL), np.random.default_rng(0)
    write_shards(tmp_path, "rows", [talk([(["how many?", *[small] * n], WORDS[n])]) for n in (1, 2, 2, 3)])
    captions = ["a handwritten six", "a red circle", "an apple"]
    write_shards(tmp_path, "describe", [describe(BLACK, caption, rng) for caption in captions])
    for name, constant in (("rows", "QUESTIONS"), ("rows", "LEARNT"), ("describe", "DESCRIBED")):
        mixture = tmp_path / f"{name}.yaml"
        mixture.write_text(
            f"sources: {{{name}: {{shards: '{tmp_path}/{name}-*.tar', weight: 1, tasks: {{instruct: 1}}}}}}\n"
        )
        monkeypatch.setattr(judging, constant, str(mixture))


@pytest.mark.usefixtures("sources")
def test_answers_are_counted_with_the_pictures_without_them_and_for_the_commonest(speaker: judging.Speaker) -> None:
    found = judging.answer_questions(speaker, 10)["rows"]
    assert found["questions"] == found["blind"]["questions"] == 4
    assert found["commonest"] == 0.5
    assert 0.0 <= found["interval"][0] <= found["right"] <= found["interval"][1] <= 1.0


@pytest.mark.usefixtures("sources")
def test_captions_are_judged_by_what_they_name(speaker: judging.Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digit whatever the sentence, and in one; a colour whatever the shape; other captions are only shown."""
    answers = iter((["a wrote a six"], ["a red square"], ["a pear"]))
    monkeypatch.setattr(judging.Speaker, "answered", lambda *_: next(answers))
    counted, examples = judging.describe_pictures(speaker, 10)
    assert {kind: (found["questions"], found["right"]) for kind, found in counted.items()} == {
        "digits named": (1, 1.0),
        "in a sentence": (1, 0.0),
        "colours named": (1, 1.0),
    }
    assert [answer for _, _, answer in examples] == [["a wrote a six"], ["a red square"], ["a pear"]]
    assert all(len(pictures) == 1 for pictures, _, _ in examples)


def test_pictures_are_drawn_on_request(speaker: judging.Speaker) -> None:
    counted, examples = judging.draw_pictures(speaker, 2)
    assert counted["digits drawn"]["questions"] == 2
    assert examples[-1][1] == judging.COUNT


def test_a_question_is_written_as_training_has_it(speaker: judging.Speaker) -> None:
    roles = speaker.tokenizer.role_of
    assert speaker.ask("why?") == [roles["user"], *b"why?", roles["assistant"]]


def test_few_steps_change_nothing_but_the_sampler(speaker: judging.Speaker) -> None:
    changed = speaker.in_few_steps().config
    assert changed.sampling.steps == judging.FEW_STEPS
    assert replace(changed, sampling=speaker.config.sampling) == speaker.config
