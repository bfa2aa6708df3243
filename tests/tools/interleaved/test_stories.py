from __future__ import annotations

from collections import Counter

import numpy as np

from oneflow_dist.evaluation.interleaved.scenes import NOUNS, read_scene
from tools.interleaved.stories import Story, draw_story

RNG = np.random.default_rng(0)
STORIES = [draw_story(RNG) for _ in range(600)]


def is_again(story: Story) -> bool:
    return len(story.scenes) > 1 and story.scenes[0] == story.scenes[-1]


def test_every_text_of_a_story_says_its_scene() -> None:
    for story in STORIES:
        assert [read_scene(text) for text in story.texts] == list(story.scenes)


def test_a_prompt_asks_for_the_scenes_in_their_order() -> None:
    for story in STORIES:
        asked = story.prompt.removeprefix("tell of ").split(", ")
        told = list(story.scenes)
        if is_again(story):
            noun = told[0].split()[2]
            assert asked.pop() == f"again the {noun if told[0].startswith('one') else NOUNS[noun]}"
            told.pop()
        assert [read_scene(f"then {part}") for part in asked] == told


def test_one_prompt_asks_for_one_story() -> None:
    assert len({story.prompt for story in STORIES}) == len({(story.prompt, story.scenes) for story in STORIES})


def test_lengths_come_alike_and_half_of_the_long_ones_end_as_they_began() -> None:
    lengths = Counter(len(story.scenes) for story in STORIES)
    assert set(lengths) == {1, 2, 3, 4}
    assert all(0.18 < number / len(STORIES) < 0.32 for number in lengths.values())
    long = [story for story in STORIES if len(story.scenes) > 2]
    assert 0.42 < sum(map(is_again, long)) / len(long) < 0.58
    assert not any(is_again(story) for story in STORIES if len(story.scenes) == 2)


def test_no_two_scenes_are_of_the_same_animal_but_a_last_one_that_returns() -> None:
    for story in STORIES:
        nouns = [label.split()[2] for label in story.scenes]
        assert len(set(nouns)) == len(nouns) - is_again(story)


def test_the_first_scene_comes_first_and_only_one_that_returns_comes_again() -> None:
    for story in STORIES:
        number = len(story.scenes)
        last = ["again" if is_again(story) else "then"] if number > 1 else []
        assert story.leads == ["first", *["then"] * (number - 2), *last]


def test_the_same_generator_draws_the_same_story() -> None:
    first, again, other = (draw_story(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
