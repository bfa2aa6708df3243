from __future__ import annotations

from dataclasses import replace

from oneflow_dist.prepare.statistics import measure
from tests.prepare.prepared import a_picture, a_sample


def test_everything_is_counted() -> None:
    wide = replace(a_picture(7), width=300, height=100, done=("turned",))
    samples = [
        a_sample(1, captions=("twice",)),
        a_sample(2, captions=("twice",)),
        a_sample(3, pictures=(wide,), done=("cut",)),
    ]
    problems = [{"name": "a", "reason": "is broken (at 7)"}, {"name": "b", "reason": "is broken (at 9) [x.png]"}]
    found = measure(samples, [*problems, {"name": "c", "reason": "is empty"}], [1, 2, 3])
    assert (found.num_pictures, found.num_texts) == (3, 3)
    assert found.done == {"turned": 1, "cut": 1}
    assert found.problems == {"is broken": ["a", "b"], "is empty": ["c"]}
    assert found.sides == {32: 2, 64: 1}
    assert found.aspects == {"wide": 2, "2:1 wide": 1}
    assert (found.tokens[0], found.tokens[1], found.tokens[-1]) == (1, 2, 3)
    assert found.repeated == 2 / 3
    assert found.scripts == {"Latin": 17}


def test_nothing_is_counted_of_nothing() -> None:
    found = measure([], [], [])
    assert (found.num_pictures, found.tokens, found.repeated, found.aspects) == (0, (), 0.0, {})
