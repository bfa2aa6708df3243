from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.canvas import Prompt
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.items import Item, Picture
from oneflow_dist.evaluation.prompts import build_prompt, build_question
from tests.messages import names, refused
from tools.digits.grammar import load_split
from tools.shards import encode_png

IMAGES = load_split("heldout")[0][:2]
ITEM = Item(
    key="k",
    fields={"caption": "a seven", "number": 7, "mark": "<|image|>{number}"},
    pictures=tuple(Picture(f"{n}.png", lambda image=image: encode_png(image)) for n, image in enumerate(IMAGES)),
)


@pytest.fixture
def build(tokenizer: Tokenizer, config: Config) -> Callable[[str], Prompt]:
    return lambda template: build_prompt(template, ITEM, tokenizer, config)


def test_fields_and_text_between_marks_are_one_text(build: Callable[[str], Prompt], tokenizer: Tokenizer) -> None:
    assert build("it is {caption} ({number})") == tokenizer.encode("it is a seven (7)")


def test_pieces_to_make_and_holes_stand_where_they_are_written(
    build: Callable[[str], Prompt], tokenizer: Tokenizer
) -> None:
    assert build("{caption}<|image|>") == [*tokenizer.encode("a seven"), ("image", None)]
    assert build("<|hole|><|image|>") == [..., ("image", None)]


def test_given_pictures_are_their_latents(build: Callable[[str], Prompt]) -> None:
    for template, number in (("{picture}", 0), ("{picture_0}", 0), ("{picture_1}", 1)):
        ((kind, latent),) = build(template)
        assert kind == "image"
        np.testing.assert_allclose(np.rint((latent[0] + 1) * 127.5), IMAGES[number])


def test_roles_begin_turns(build: Callable[[str], Prompt], tokenizer: Tokenizer) -> None:
    roles = tokenizer.role_of
    user, (kind, _), *text, assistant = build("<|user|>{picture}{caption}<|assistant|>")
    assert (user, kind, assistant) == (roles["user"], "image", roles["assistant"])
    assert text == tokenizer.encode("a seven")


def test_what_a_field_says_is_no_mark(build: Callable[[str], Prompt], tokenizer: Tokenizer) -> None:
    assert build("{mark}") == tokenizer.encode("<|image|>{number}")


@pytest.mark.parametrize("template", ["{no}", "{picture_2}"])
def test_what_an_item_has_not_is_refused(build: Callable[[str], Prompt], template: str) -> None:
    assert names(refused(build, template), "item k", template)
    assert names(refused(build_question, template, ITEM), "item k", template)


def test_a_question_for_a_choice_has_places_for_its_pictures() -> None:
    question, has_turns = build_question("<|user|>{picture_1}what of {caption}?<|assistant|>", ITEM)
    assert has_turns
    assert question.text == "<image>what of a seven?"
    assert question.pictures == (encode_png(IMAGES[1]),)
    assert not build_question("{picture}", ITEM)[1]
    assert names(refused(build_question, "{picture}<|image|>", ITEM), "item k", "<|image|>")
