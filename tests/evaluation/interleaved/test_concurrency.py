from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from oneflow_dist.evaluation.answers import Answer, strip_name
from oneflow_dist.evaluation.interleaved.concurrency import Firsts, find_firsts, measure_concurrency, measure_firsts
from oneflow_dist.evaluation.interleaved.documents import read_document
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.scenes import STORIES
from tests.evaluation.interleaved.made_up import Said, Shown, write_document
from tests.messages import naming

# The fish come while their text is written and are right, the mice come after theirs and have the wrong colour.
A, B = Said("first one red fish", (1, 2, 3, 5)), Said("then two blue mice", (2, 6, 6, 7))
FISH, MICE = Shown("one red fish", 4, 8), Shown("two green mouse", 9, 12)


def figures(judge: Judge, *answers: Answer) -> dict[str, float]:
    measures = measure_concurrency(answers, [read_document(answer, STORIES, judge) for answer in answers])
    return {name: measure.value for name, measure in measures.items()}


def firsts(judge: Judge, answer: Answer) -> Firsts:
    return find_firsts(answer, read_document(answer, STORIES, judge), judge)


def test_figures_are_what_one_counts(judge: Judge, tmp_path: Path) -> None:
    assert figures(judge, write_document(tmp_path, A, FISH, B, MICE)) == pytest.approx(
        {
            "birth": (4 / 8 + 8 / 8) / 2,  # of tokens born at 1 2 3 5 2 6 6 7 those up to step 4, then up to 9
            "early": 1 / 2,
            "agreement_early": 1.0,
            "agreement_late": 0.0,
            "beside": 1 / 2,
        }
    )


def test_all_images_of_all_documents_count_alike(judge: Judge, tmp_path: Path) -> None:
    two = write_document(tmp_path / "0", A, FISH, B, MICE)
    one = write_document(tmp_path / "1", A, replace(FISH, born=2))
    assert figures(judge, two, one) == pytest.approx(
        {"birth": (1 / 2 + 1 + 2 / 4) / 3, "early": 2 / 3, "agreement_early": 1.0, "agreement_late": 0.0}
        | {"beside": 2 / 3}
    )


def test_a_picture_born_with_the_last_token_of_its_text_comes_after_it(judge: Judge, tmp_path: Path) -> None:
    assert figures(judge, write_document(tmp_path, A, replace(FISH, born=5)))["early"] == 0.0
    assert figures(judge, write_document(tmp_path, A, replace(FISH, born=4)))["early"] == 1.0


def test_a_picture_that_was_asked_for_is_there_before_all_text(judge: Judge, tmp_path: Path) -> None:
    found = figures(judge, write_document(tmp_path, replace(FISH, born=0), A))
    assert found == {"birth": 0.0, "beside": 1.0}  # and no text stands before it


def test_only_the_first_picture_after_a_text_is_of_it(judge: Judge, tmp_path: Path) -> None:
    found = figures(judge, write_document(tmp_path, A, FISH, replace(FISH, born=1)))
    assert (found["early"], found["agreement_early"]) == (1.0, 1.0)


@pytest.mark.parametrize("made", [(), (A, B), (FISH,), (Said("first one red fish"), Shown("one red fish"))])
def test_without_steps_of_both_there_is_no_figure(made: tuple[Said | Shown, ...], judge: Judge, tmp_path: Path) -> None:
    assert figures(judge, write_document(tmp_path, *made)) == {}


def test_without_states_a_picture_is_recognised_when_it_is_done(judge: Judge, tmp_path: Path) -> None:
    answer = write_document(tmp_path, A, FISH, B, MICE, steps=12)
    assert firsts(judge, answer) == Firsts(sentence=5, image=8, last=12)


@pytest.mark.parametrize(
    ("wrong", "step"),
    [("", 4), ("x", 5), ("xx", 6), (" x", 6), ("x x", 7), ("xxxx", 8)],
)
def test_with_states_a_picture_is_recognised_after_its_last_wrong_one(
    wrong: str, step: int, judge: Judge, tmp_path: Path
) -> None:
    states = tuple("two blue mouse" if mark == "x" else "one red fish" for mark in f"{wrong:5}")
    answer = write_document(tmp_path, A, replace(FISH, states=states), steps=12)
    assert firsts(judge, answer).image == step


def test_a_wrong_picture_is_recognised_as_what_it_became(judge: Judge, tmp_path: Path) -> None:
    states = ("two blue mouse", "two green mouse", "two green mouse")
    answer = write_document(tmp_path, B, replace(MICE, states=states), steps=12)
    assert firsts(judge, answer) == Firsts(sentence=7, image=10, last=12)


def test_where_a_correction_left_no_state_the_end_counts(judge: Judge, tmp_path: Path) -> None:
    answer = write_document(tmp_path, A, FISH, steps=12)
    Image.new("RGB", (1, 1)).save(tmp_path / strip_name(answer.images[0]))
    assert firsts(judge, answer).image == 8


def test_a_broken_file_of_states_is_named(judge: Judge, tmp_path: Path) -> None:
    answer = write_document(tmp_path, A, FISH)
    path = tmp_path / strip_name(answer.images[0])
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=naming(path)):
        firsts(judge, answer)


@pytest.mark.parametrize(
    "made", [(), (Said("once upon a time", (1, 2, 3, 4)), replace(FISH, end=0)), (Said("first one red fish"),)]
)
def test_what_never_came_has_no_first_step(made: tuple[Said | Shown, ...], judge: Judge, tmp_path: Path) -> None:
    assert firsts(judge, write_document(tmp_path, *made, steps=3)) == Firsts(sentence=None, image=None, last=3)


def test_forwards_are_of_the_documents_that_have_a_first() -> None:
    found = measure_firsts(
        [
            Firsts(sentence=5, image=8, last=12),
            Firsts(sentence=3, image=None, last=4),
            Firsts(sentence=None, image=None, last=9),
        ]
    )
    assert {name: measure.value for name, measure in found.items()} == pytest.approx(
        {"forwards_to_sentence": 4.0, "part_to_sentence": 8 / 16, "forwards_to_image": 8.0, "part_to_image": 8 / 12}
    )
    assert measure_firsts([Firsts(sentence=None, image=None, last=9)]) == {}


def test_where_the_steps_of_the_whole_are_not_told_there_is_no_part_of_them() -> None:
    assert measure_firsts([Firsts(sentence=5, image=None, last=0)]).keys() == {"forwards_to_sentence"}
