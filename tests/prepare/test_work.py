from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.items import Blob, Item
from oneflow_dist.prepare.work import FOLDER, PART_ITEMS, list_parts, prepare_parts, remove_parts
from tests.prepare.nasty import store
from tests.prepare.prepared import contents, scene

POLICY = CropPolicy(size=16, multiple_of=4, max_aspect=1.0)


def make_items(count: int) -> list[Item]:
    png = store(scene(0), "PNG")
    blobs = [
        Blob(name=f"{n}.png", path=Path(), content=png[: len(png) // (2 if n % 50 == 7 else 1)]) for n in range(count)
    ]
    return [Item(name=blob.name, parts=(blob,), captions=(f"number {blob.name}",)) for blob in blobs]


def test_all_items_are_in_parts_of_one_size(tmp_path: Path) -> None:
    parts = list_parts(tmp_path, 2 * PART_ITEMS + 1)
    assert [(part.first, part.end) for part in parts] == [
        (0, PART_ITEMS),
        (PART_ITEMS, 2 * PART_ITEMS),
        (2 * PART_ITEMS, 2 * PART_ITEMS + 1),
    ]
    assert list_parts(tmp_path, 0) == []


def test_a_part_tells_of_samples_their_pictures_and_problems(tmp_path: Path) -> None:
    items = make_items(9)
    (part,) = list_parts(tmp_path, 9)
    prepare_parts([part], items, POLICY, 1)
    samples, problems = part.read()
    assert [sample.name for sample in samples] == [item.name for item in items if item.name != "7.png"]
    assert [problem["name"] for problem in problems] == ["7.png"]
    assert {part.read_png(sample.pictures[0])[:4] for sample in samples} == {b"\x89PNG"}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_is_complete_is_not_made_again(num_workers: int, tmp_path: Path) -> None:
    items = make_items(3 * PART_ITEMS)
    parts = list_parts(tmp_path / "one", len(items))
    prepare_parts(parts, items, POLICY, 1)
    again = list_parts(tmp_path / "again", len(items))
    prepare_parts(again[1:2], items, POLICY, 1)
    kept = again[1].records.stat().st_mtime_ns
    prepare_parts(again, items, POLICY, num_workers)
    assert contents(tmp_path / "again") == contents(tmp_path / "one")
    assert again[1].records.stat().st_mtime_ns == kept
    remove_parts(tmp_path / "again")
    assert not (tmp_path / "again" / FOLDER).exists()
