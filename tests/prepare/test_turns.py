from __future__ import annotations

from pathlib import Path

from oneflow_dist.data.conversations import Segment
from oneflow_dist.prepare.items import Blob
from oneflow_dist.prepare.turns import is_conversation, parts_of, read_conversation, turns_of
from tests.messages import names, refused

OWL, COD = (Blob(name=name, path=Path(name)) for name in ("owl.png", "cod.png"))


def test_pictures_stand_where_they_are_placed() -> None:
    entry = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare <image> and\n<image>"},
            {"from": "gpt", "value": "A bird."},
        ]
    }
    assert read_conversation(entry, [OWL, COD]) == (
        ("system", ("Be brief.",)),
        ("user", ("Compare", OWL, "and", COD)),
        ("assistant", ("A bird.",)),
    )


def test_one_place_for_each_picture() -> None:
    entry = {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A bird."}]}
    assert names(refused(read_conversation, entry, [OWL]), 0, "<image>", 1)
    assert read_conversation(entry, []) == (("user", ("What is it?",)), ("assistant", ("A bird.",)))


def test_segments_of_one_role_are_one_turn() -> None:
    segments = [Segment(piece="0"), Segment(text="What is it?"), Segment(text="A bird.", role="assistant")]
    assert parts_of(segments, {"0": OWL}) == (OWL, "What is it?", "A bird.")
    assert turns_of(segments, {"0": OWL}) == (("user", (OWL, "What is it?")), ("assistant", ("A bird.",)))


def test_a_textbook_with_answers_is_no_conversation() -> None:
    segments = [Segment(text="Owls"), Segment(text="A bird.", role="assistant")]
    assert is_conversation({"segments": [{"text": "Owls"}, {"text": "A bird.", "role": "answer"}]}, segments)
    assert not is_conversation({"segments": [{"role": "title"}, {"role": "answer"}]}, segments)
    assert not is_conversation({}, segments[:1])
