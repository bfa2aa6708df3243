from __future__ import annotations

from dataclasses import replace

from oneflow_dist.prepare.samples import Sample
from oneflow_dist.prepare.split import FURNITURE, Split, split_samples
from tests.prepare.prepared import a_sample


def split(samples: list[Sample], share: float = 0.1, seed: int = 0, drop: bool = False) -> Split:
    return split_samples(samples, share, seed, drop)


def held_out(samples: list[Sample], share: float = 0.1, seed: int = 0) -> set[str]:
    found = split(samples, share, seed).is_held_out
    return {sample.name for sample, is_held in zip(samples, found, strict=True) if is_held}


def test_a_sample_keeps_its_place_when_others_are_added() -> None:
    samples = [a_sample(number) for number in range(400)]
    few = held_out(samples[:200])
    assert 8 <= len(few) <= 35
    assert held_out(samples) & {sample.name for sample in samples[:200]} == few
    assert held_out(samples[:200], seed=1) != few


def test_near_pictures_are_held_out_together() -> None:
    samples = [a_sample(number, seeds=[number // 4]) for number in range(400)]
    kept = held_out(samples)
    assert 0 < len(kept) < 400
    assert all(len(kept & {f"{4 * group + n:03d}.png" for n in range(4)}) in (0, 4) for group in range(100))
    found = split(samples).duplicates
    assert (len(found), found[0]) == (100, ["000.png", "001.png", "002.png", "003.png"])


def test_the_parts_of_one_document_are_held_out_together() -> None:
    parts = [
        a_sample(number, "texts", [], name=f"page {number // 5}", turns=(("", (f"{number}",)),))
        for number in range(200)
    ]
    kept = split(parts, 0.3).is_held_out
    assert any(kept)
    assert all(len(set(kept[first : first + 5])) == 1 for first in range(0, 200, 5))


def test_a_logo_does_not_join_all_documents() -> None:
    pages = [a_sample(number, "documents", [0, number + 1]) for number in range(FURNITURE + 5)]
    assert 0 < len(held_out(pages, 0.3)) < len(pages)
    few = [a_sample(number, "documents", [0, number + 1]) for number in range(FURNITURE)]
    assert len(held_out(few, 0.3)) == 0  # one group, which training needs


def test_of_twenty_samples_at_least_one_is_held_out_and_of_no_share_none() -> None:
    samples = [a_sample(number) for number in range(20)]
    assert len(held_out(samples, 1e-6)) == 1
    assert held_out(samples, 0.0) == set()
    assert held_out(samples[:19], 1e-6) == set()
    assert len(held_out(samples, 0.999)) == 19


def test_of_each_kind_some_are_held_out() -> None:
    pairs, texts = (
        [a_sample(n) for n in range(30)],
        [a_sample(50 + n, "texts", [], turns=(("", (f"{n}",)),)) for n in range(30)],
    )
    kept = split([*pairs, *texts], 1e-6).is_held_out
    assert (sum(kept[:30]), sum(kept[30:])) == (1, 1)


def test_of_near_pictures_the_first_by_name_stays_and_documents_all_do() -> None:
    samples = [a_sample(3, seeds=[0]), a_sample(1, seeds=[0]), a_sample(2, "pictures", [0]), a_sample(5)]
    samples.append(replace(a_sample(0, "documents", [0]), name="000.html"))
    found = split(samples, drop=True)
    assert found.is_dropped == [True, False, True, False, False]
    assert split(samples).is_dropped == [False] * 5
