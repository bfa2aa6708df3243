from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Prompt, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.asking import Asker, Question, load_asker
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import Run
from tests.messages import names, refused

PLAIN = "heads.time_conditioning=none"
KINDS = {
    "insertion": (),
    "autoregressive": ("objective.kind=autoregressive", PLAIN),
    "masked": ("objective.kind=masked", PLAIN, "objective.canvas_tokens=6"),
}
PIXELS = np.random.default_rng(0).integers(256, size=(2, 8, 8)).astype(np.uint8)
FIRST, SECOND = (Image.fromarray(pixels) for pixels in PIXELS)
QUESTION = Question("which digit?", (FIRST,))


Make = Callable[..., Asker]


@pytest.fixture(scope="module")
def make_asker(make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tokenizer: Tokenizer) -> Make:
    def make(kind: str = "insertion", **changes: object) -> Asker:
        config = make_config(*KINDS[kind], "sampling.steps=4", "sampling.max_rows=28")
        asker = Asker(model=make_model(config).eval(), config=config, tokenizer=tokenizer, instants=4)
        return dataclasses.replace(asker, **changes)

    return make


def knowing_nothing(asker: Asker) -> Asker:
    for parameter in asker.model.parameters():
        parameter.data.zero_()
    return asker


def prompt_for(asker: Asker, question: Question) -> Prompt:
    """What a question is to the model: text decoded, pictures by their number."""
    prompt = prompt_of(asker._lay_out(question, 0), asker.config.modality)
    latents = [pixels_to_latent(pixels[:, :, None]) for pixels in PIXELS]
    found: list[str | int] = []
    for part in prompt:
        if isinstance(part, tuple):
            found.append([np.array_equal(part[1], latent) for latent in latents].index(True))
        else:
            text = asker.tokenizer.decode([part])
            found[-1:] = [found[-1] + text] if found and isinstance(found[-1], str) else [*found[-1:], text]
    return found


def test_a_question_is_a_turn_and_pictures_come_before_its_text(make_asker: Make) -> None:
    assert prompt_for(make_asker(), QUESTION) == ["<|user|>", 0, "which digit?<|assistant|>"]


def test_without_turns_a_question_is_its_text_to_the_letter(make_asker: Make) -> None:
    asker = make_asker(has_turns=False)
    assert prompt_for(asker, Question("which digit? It is ", (FIRST,))) == [0, "which digit? It is "]
    assert prompt_for(asker, Question("")) == []


def test_pictures_stand_where_the_text_says_so_if_it_does_so_for_each(make_asker: Make) -> None:
    asker, both = make_asker(), (SECOND, FIRST)
    placed = prompt_for(asker, Question("is <image> more than <image>?", both))
    assert placed == ["<|user|>is", 1, "more than", 0, "?<|assistant|>"]
    in_front = prompt_for(asker, Question("what is <image>?", both))
    assert in_front == ["<|user|>", 1, 0, "what is <image>?<|assistant|>"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_pictures_of_any_mode_are_seen(mode: str, make_asker: Make) -> None:
    white = Image.new("L", (8, 8), 255).convert(mode)
    (_, (_, latent), *_) = prompt_of(make_asker()._lay_out(Question("?", (white,)), 0), make_asker().config.modality)
    np.testing.assert_allclose(latent, 1.0)


def test_a_picture_may_be_a_file(make_asker: Make) -> None:
    file = io.BytesIO()
    FIRST.save(file, format="PNG")
    asker, question = make_asker(), Question("which digit?", (file.getvalue(),))
    assert prompt_for(asker, question) == prompt_for(asker, QUESTION)
    message = refused(asker.answer, [QUESTION, Question("?", (b"no picture",))])
    assert names(message, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_turns", [True, False])
def test_answers_are_text_and_the_same_for_the_same_seed_and_number(
    kind: str, has_turns: bool, make_asker: Make
) -> None:
    asker = make_asker(kind, has_turns=has_turns, group=2)
    questions = [Question("which digit?", (FIRST, SECOND)[:n]) for n in range(3)]
    answers = asker.answer(questions, seed=1)
    assert len(answers) == 3
    assert any(answers)
    assert not any("<|" in text for text in answers)
    assert asker.answer(questions, seed=1) == answers
    assert asker.answer(questions, seed=2) != answers
    assert asker.answer(questions[2:], seed=1, start=2) == answers[2:]


def test_a_question_without_room_for_an_answer_is_refused(make_asker: Make) -> None:
    message = refused(make_asker().answer, [QUESTION, Question("which digit? " * 30)])
    assert names(message, 1, 28, "sampling.max_rows")


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_bound_is_chosen_whatever_the_order(kind: str, make_asker: Make) -> None:
    asker, choices = make_asker(kind), ["one", "seven seven seven", "two", "nine"]
    bounds = [asker.bound(QUESTION, choice) for choice in choices]
    assert len(set(bounds)) == 4
    least = choices[int(np.argmin(bounds))]
    assert choices[asker.choose(QUESTION, choices)] == least
    assert choices[::-1][asker.choose(QUESTION, choices[::-1])] == least


def test_for_each_token_a_long_choice_has_a_chance(make_asker: Make) -> None:
    """All tokens being the same to a model, each costs as much, and so does the end."""
    asker, choices = knowing_nothing(make_asker("autoregressive")), ["one", "one one one"]
    assert asker.choose(QUESTION, choices) == 0
    assert asker.choose(QUESTION, choices, per_token=True) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_depends_on_the_question_and_its_picture(kind: str, make_asker: Make) -> None:
    asker = make_asker(kind)
    asked = [QUESTION, Question("which digit?", (SECOND,)), Question("which digit?"), Question("digit?", (FIRST,))]
    assert len({asker.bound(question, "one") for question in asked}) == 4
    assert asker.bound(QUESTION, "one") == asker.bound(QUESTION, " one ")  # an answer of a turn has no blanks around it
    assert asker.bound(QUESTION, "one") > 0.0


def test_a_choice_of_nothing_is_refused(make_asker: Make) -> None:
    assert names(refused(make_asker().bound, QUESTION, " "), "answer", "' '")


def test_choices_are_compared_with_the_same_random_numbers(make_asker: Make) -> None:
    """So that two choices of which the model thinks the same differ in nothing, at however few instants."""
    asker = knowing_nothing(make_asker(instants=1))
    one, two = asker.tokenizer.encode("one"), asker.tokenizer.encode("two")
    assert len(one) == len(two)
    assert asker.bound(QUESTION, "one") == asker.bound(QUESTION, "two")


def test_a_run_is_asked(unbroken: Run) -> None:
    asker = load_asker(unbroken.folder, max_rows=40, group=3)
    assert (asker.config.sampling.max_rows, asker.group, asker.has_turns) == (40, 3, True)
    assert not load_asker(unbroken.folder, has_turns=False).has_turns
    assert len(asker.answer([QUESTION, Question("?")])) == 2


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert names(refused(load_asker, tmp_path), tmp_path)
