from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from oneflow_dist.evaluation.metrics.captions import measure_captions, measure_tokens
from tests.messages import names, refused

# 200 captions with one to five references each, and what pycocoevalcap 1.2 says of them; tests/torture/captions.py
# makes it anew.
REFERENCE = json.loads(Path(__file__).with_name("captions_reference.json").read_text())
ITEMS = REFERENCE["items"]
NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
MEASURES = measure_captions([item["candidate"] for item in ITEMS], [item["references"] for item in ITEMS])
TEXTS = ["a red box on a blue tower", "two men with hats ride along", "the small dog sleeps under trees"]


def values(candidates: list[str], references: list[list[str]]) -> dict[str, float]:
    return {name: measure.value for name, measure in measure_captions(candidates, references).items()}


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_cocos(name: str) -> None:
    assert len(ITEMS) == 200
    assert MEASURES[name].value == pytest.approx(REFERENCE["figures"][name], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_each_item_are_cocos(name: str) -> None:
    measure = MEASURES[name]
    alone = [measure.combine(row[None]) for row in measure.rows]
    assert alone == pytest.approx([item["figures"][name] for item in ITEMS], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_intervals_hold_the_value(name: str) -> None:
    low, high = MEASURES[name].interval()
    assert low < MEASURES[name].value < high
    assert high - low < 0.3 * MEASURES[name].value


def test_equal_captions_have_the_most_of_each() -> None:
    expected = dict.fromkeys(NAMES, 1.0) | {"cider": 10.0}
    assert values(TEXTS, [[text] for text in TEXTS]) == pytest.approx(expected)


def test_captions_with_nothing_in_common_have_nothing() -> None:
    others = ["green circles everywhere, many", "some ladies walk quietly home again", "one big cat eats fish now"]
    assert values(TEXTS, [[text] for text in others]) == pytest.approx(dict.fromkeys(NAMES, 0.0), abs=1e-8)


def test_captions_of_other_items_have_less_of_each() -> None:
    candidates = [item["candidate"] for item in ITEMS]
    turned = values([*candidates[1:], candidates[0]], [item["references"] for item in ITEMS])
    assert all(turned[name] < 0.6 * MEASURES[name].value for name in NAMES)


def test_the_closest_reference_says_how_long_a_caption_should_be() -> None:
    # the same words, 4 of them: of 5 and 9 the closer one, exp(1 - 5 / 4)
    short, long = list("abcde"), list("abcdefghi")
    measures = measure_tokens([short[:4]] * 2, [[long, short]] * 2)
    assert measures["bleu_4"].value == pytest.approx(math.exp(1 - 5 / 4))


def test_rouge_takes_precision_and_recall_of_the_best_reference_each() -> None:
    candidate, references = list("abcd"), [list("axb"), list("abcdefgh")]
    measure = measure_tokens([candidate] * 2, [references] * 2)["rouge_l"]
    precision, recall = 4 / 4, 2 / 3
    assert measure.value == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))


def test_words_that_all_items_have_weigh_nothing_in_cider() -> None:
    measure = measure_tokens([["a", "dog"], ["a", "cat"]], [[["a", "cow"]], [["a", "hen"]]])["cider"]
    assert measure.value == 0.0
    assert measure_tokens([["a", "dog"], ["a", "cat"]], [[["a", "dog"]], [["a", "hen"]]])["cider"].value > 0.0


def test_an_empty_caption_is_worth_nothing() -> None:
    some = values(["", TEXTS[1]], [[TEXTS[0]], [TEXTS[1]]])
    assert some["rouge_l"] == pytest.approx(0.5)
    assert some["cider"] == pytest.approx(5.0)


def test_lists_that_do_not_belong_together_are_refused() -> None:
    assert names(refused(measure_captions, TEXTS, [[text] for text in TEXTS[:2]]), "captions", 3, 2)


def test_an_item_without_references_is_refused() -> None:
    assert names(refused(measure_captions, TEXTS, [["a"], [], ["b"]]), "captions", "item 1", "[]")


def test_a_single_item_is_refused() -> None:
    assert names(refused(measure_captions, TEXTS[:1], [TEXTS]), "captions", 1, "cider", 2)
    assert names(refused(measure_tokens, [], []), "captions", 0, "cider", 2)
