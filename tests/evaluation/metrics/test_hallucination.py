from __future__ import annotations

import pytest

from oneflow_dist.evaluation.metrics.hallucination import measure_chair
from tests.messages import names, refused

SYNONYMS = {
    "puppy": "dog",
    "man": "person",
    "men": "person",
    "baby": "person",
    "baby bird": "bird",
    "street light": "traffic light",
    "knife": "knife",
    "glass": "glass",
    "berry": "berry",
    "bus": "bus",
    "leaf": "leaf",
    "light": "lamp",
    "cat": "cat",
}


def values(captions: list[str], objects: list[set[str]]) -> dict[str, float]:
    return {name: measure.value for name, measure in measure_chair(captions, objects, SYNONYMS).items()}


def test_figures_count_mentions_captions_and_objects() -> None:
    captions = ["A puppy and a dog chase two cats.", "A man.", "Nothing at all"]
    objects = [{"dog", "person"}, {"person"}, {"cat"}]
    # mentions: dog, dog, cat; person; none: one of four is invented, in one of three captions; found 2 of 4 objects
    assert values(captions, objects) == pytest.approx({"chair_i": 1 / 4, "chair_s": 1 / 3, "recall": 2 / 4})


def test_what_is_in_the_picture_is_not_invented() -> None:
    assert values(["a cat", "a dog"], [{"cat"}, {"dog"}]) == {"chair_i": 0.0, "chair_s": 0.0, "recall": 1.0}


def test_everything_may_be_invented() -> None:
    assert values(["a cat", "a dog"], [{"dog"}, {"cat"}]) == {"chair_i": 1.0, "chair_s": 1.0, "recall": 0.0}


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("cats", "cat"),
        ("berries", "berry"),
        ("buses", "bus"),
        ("the bus", "bus"),
        ("leaves", "leaf"),
        ("knives", "knife"),
        ("glasses", "glass"),
        ("a glass", "glass"),
        ("men", "person"),
        ("Street lights!", "traffic light"),
        ("traffic lights", "traffic light"),
        ("the light's on", "lamp"),
        ("baby birds", "bird"),
        ("a cat's", "cat"),
    ],
)
def test_a_word_or_phrase_or_its_plural_mentions_one_object(caption: str, name: str) -> None:
    assert values([caption], [{name}]) == {"chair_i": 0.0, "chair_s": 0.0, "recall": 1.0}


def test_the_words_of_a_phrase_are_no_mentions() -> None:
    assert values(["a baby bird and a baby"], [{"person"}])["chair_i"] == 0.5
    assert values(["a baby bird"], [{"person"}])["recall"] == 0.0


def test_a_picture_without_objects_makes_every_mention_an_invented_one() -> None:
    assert values(["a cat", "words"], [set(), set()]) == {"chair_i": 1.0, "chair_s": 0.5, "recall": 0.0}


def test_the_interval_holds_the_value() -> None:
    measures = measure_chair(["a cat and a dog", "a dog", "a man"] * 20, [{"dog"}, {"cat"}, {"person"}] * 20, SYNONYMS)
    for measure in measures.values():
        low, high = measure.interval()
        assert low < measure.value < high


def test_lists_that_do_not_belong_together_are_refused() -> None:
    assert names(refused(measure_chair, ["a cat", "a dog"], [{"cat"}], SYNONYMS), "chair", 2, 1)
    assert names(refused(measure_chair, [], [], SYNONYMS), "chair", 0, 0)


def test_an_object_that_no_caption_could_name_is_refused() -> None:
    assert names(refused(measure_chair, ["a cat"], [{"kitten"}], SYNONYMS), "chair", 0, "kitten")
