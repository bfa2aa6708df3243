from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.items import Blob, Item
from oneflow_dist.prepare.samples import (
    EMPTY_CAPTION,
    LONG_CAPTION,
    MAX_CAPTION,
    MAX_CAPTIONS,
    MAX_DOCUMENT,
    MORE_CAPTIONS,
    Preparation,
    Sample,
    read_sample,
)
from tests.prepare.nasty import store
from tests.prepare.prepared import scene

OWL = Blob(name="owl.png", path=Path("owl.png"), content=store(scene(0), "PNG"))
EMPTY = Blob(name="gone.png", path=Path("gone.png"), content=b"")
LOST = Blob(name="lost.png", path=Path("/nowhere/lost.png"))


def prepare(**item: Any) -> tuple[list[Sample], list[str]]:
    """What becomes of an item, as it is written and read; and what is wrong with it."""
    preparation = Preparation(CropPolicy(size=16, multiple_of=4, max_aspect=1.0))
    preparation.add(3, Item(name="item", **item))
    samples = [read_sample(json.loads(json.dumps(record))) for record in preparation.samples]
    assert len(preparation.pngs) == sum(picture.length for sample in samples for picture in sample.pictures)
    return samples, [problem["reason"] for problem in preparation.problems]


def only(**item: Any) -> Sample:
    (sample,), problems = prepare(**item)
    assert problems == []
    return sample


def test_a_picture_with_a_caption_is_a_pair() -> None:
    sample = only(parts=(OWL,), captions=("an &quot;owl&quot;",), fields={"id": 7})
    assert (sample.kind, sample.key, sample.captions, sample.fields) == ("pairs", "00000003", ('an "owl"',), {"id": 7})
    assert (sample.pictures[0].width, sample.pictures[0].cut) == (48, (16, 16))


def test_a_picture_without_a_caption_or_with_an_empty_one_is_alone() -> None:
    assert only(parts=(OWL,)).kind == "pictures"
    sample = only(parts=(OWL,), captions=(" \n",))
    assert (sample.kind, sample.done) == ("pictures", (EMPTY_CAPTION,))


def test_of_several_captions_each_is_kept_once() -> None:
    many = tuple(f"caption {number}" for number in range(MAX_CAPTIONS + 1))
    sample = only(parts=(OWL,), captions=("caption 0", "", "x" * (MAX_CAPTION + 1), *many))
    assert sample.captions == many[:MAX_CAPTIONS]
    assert sample.done == (EMPTY_CAPTION, LONG_CAPTION, MORE_CAPTIONS)


def test_texts_and_pictures_in_turn_are_a_document() -> None:
    sample = only(parts=("One\r\ntwo", OWL, " ", "three"))
    assert (sample.kind, sample.turns) == ("documents", (("", ("One\ntwo", 0, "three")),))


def test_a_long_document_becomes_several() -> None:
    samples, _ = prepare(parts=("word " * (MAX_DOCUMENT // 4), OWL, "end"))
    assert [sample.key for sample in samples] == ["00000003-0000", "00000003-0001"]
    assert [sample.kind for sample in samples] == ["texts", "documents"]
    assert all(sum(map(len, sample.texts)) <= MAX_DOCUMENT for sample in samples)


def test_turns_of_one_role_are_one() -> None:
    turns = (("system", ("",)), ("user", (OWL,)), ("user", ("What is it?",)), ("assistant", ("An owl.",)))
    sample = only(turns=turns)
    assert (sample.kind, sample.turns) == (
        "conversations",
        (("user", (0, "What is it?")), ("assistant", ("An owl.",))),
    )


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"problem": "its picture owl.png does not exist"}, "its picture owl.png does not exist"),
        ({"parts": (EMPTY,)}, "is empty (0 bytes)"),
        ({"parts": ("text", OWL, EMPTY)}, "a picture is empty (0 bytes) [gone.png]"),
        ({"parts": (OWL,), "captions": ("x" * (MAX_CAPTION + 1),)}, "has a caption of more than 8000 characters"),
        ({"parts": (), "captions": ("no picture",)}, "has no picture"),
        ({"parts": (" ",)}, "has neither text nor a picture"),
        ({"turns": (("user", ("hello",)),)}, "has no turn of the assistant"),
        ({"turns": (("user", ("",)), ("assistant", ("yes",)))}, "has an empty turn (of the user)"),
    ],
)
def test_what_cannot_be_used_has_a_reason(item: dict[str, Any], reason: str) -> None:
    assert prepare(**item) == ([], [reason])


def test_a_file_that_is_gone_is_a_problem_of_its_item() -> None:
    (reason,) = prepare(parts=(LOST,))[1]
    assert reason.startswith("cannot be read (")


def test_content_has_a_hash_whatever_it_is_called() -> None:
    samples = [only(parts=(OWL,), captions=(caption,)) for caption in ("an owl", " an  owl", "a bird")]
    first, second, other = (sample.content_hash() for sample in samples)
    assert first == second != other
