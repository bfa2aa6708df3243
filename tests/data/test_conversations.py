from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from oneflow_dist.data.conversations import PLACE, ROLE_OF, Segment, read_document
from tests.messages import names, refused


def spell(segments: list[Segment] | None) -> list[str]:
    """Each with the first letter of its role; a piece in brackets."""
    assert segments is not None
    return [f"{part.role[0]}: {f'[{part.piece}]' if part.text is None else part.text}" for part in segments]


def messages(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def values(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def segments(*turns: tuple[str | None, str]) -> dict[str, Any]:
    return {
        "segments": [{"type": "text", "text": text} | ({} if role is None else {"role": role}) for role, text in turns]
    }


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def shown(name: str | None = None) -> dict[str, str]:
    return {"type": "image"} if name is None else {"type": "image", "image": name}


# One conversation, in every shape.

QUESTION, ANSWER = [shown("0.png"), said("And this?")], [said("Like so:"), shown("1.png"), said("Bye.")]
TALK = ["s: Be brief.", "u: Hello", "a: Hi!", "u: [0]", "u: And this?", "a: Like so:", "a: [1]", "a: Bye."]
SHAPES = {
    "messages": messages(
        *[("system", "Be brief."), ("user", " Hello\n"), ("assistant", [said("Hi!")]), ("user", QUESTION)],
        ("assistant", ANSWER),
    ),
    "messages without names": messages(
        *[("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", [shown(), said("And this?")])],
        ("assistant", [said("Like so:"), shown(), said("Bye.")]),
    ),
    "messages with addresses": messages(
        *[("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!")],
        ("user", [{"type": "image_url", "image_url": {"url": "0.png"}}, said("And this?")]),
        ("assistant", [said("Like so:"), {"type": "image_url", "image_url": "1.png"}, said("Bye.")]),
    ),
    "LLaVA": values(
        *[("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi!"), ("human", "<image>\nAnd this?")],
        ("gpt", "Like so: <image> Bye."),
        image=["0.png", "1.png"],
    ),
    "LLaVA without names": values(
        *[("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi!"), ("human", "<image>\nAnd this?")],
        ("gpt", "Like so: <image> Bye."),
    ),
    "segments": {
        "segments": [
            *[said("Be brief.") | {"role": "system"}, said("Hello"), said("Hi!") | {"role": "answer"}, *QUESTION],
            *[part | {"role": "assistant"} for part in ANSWER],
        ]
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_conversation_is_the_same_in_every_shape(shape: str) -> None:
    assert spell(read_document(SHAPES[shape], ["0", "1"])) == TALK


def test_text_alone_is_a_conversation_too() -> None:
    expected = ["u: Hello", "a: Hi!"]
    assert spell(read_document(messages(("user", "Hello"), ("assistant", "Hi!")), [])) == expected
    assert spell(read_document(values(("human", "Hello"), ("gpt", "Hi!")), [])) == expected
    assert spell(read_document(values(("user", "Hello"), ("assistant", "Hi!")), [])) == expected


def test_other_fields_are_no_conversation() -> None:
    assert read_document({"question": "q", "answer": "a", "image": "0.png"}, ["0"]) is None


def test_one_picture_is_it_whatever_it_was_called_where_it_comes_from() -> None:
    asked = [("human", "<image>What?"), ("gpt", "A cat.")]
    for image in ("coco/train2017/000000033471.jpg", ["33471.jpg"], "png", None):
        more = {} if image is None else {"image": image}
        assert spell(read_document(values(*asked, **more), [""])) == ["u: []", "u: What?", "a: A cat."]


def test_the_order_of_pictures_is_that_of_their_list() -> None:
    fields = values(("human", "<image><image>?"), ("gpt", "!"), image=["b.png", "a.png"])
    assert spell(read_document(fields, ["a", "b"])) == ["u: [b]", "u: [a]", "u: ?", "a: !"]


def test_the_mark_of_a_picture_is_text_everywhere_else() -> None:
    expected = [f"u: what is {PLACE}?", f"a: {PLACE} is HTML"]
    turns = [("user", f"what is {PLACE}?"), ("assistant", f"{PLACE} is HTML")]
    assert spell(read_document(values(*turns), [])) == expected  # ShareGPT: there is no picture
    assert spell(read_document(messages(*turns), [])) == expected
    assert spell(read_document(segments(*turns), [])) == expected


def test_a_system_turn_that_says_nothing_is_left_out() -> None:
    for empty in ("", " \n", None, []):
        fields = messages(("system", empty), ("user", "a"), ("assistant", "b"))
        assert spell(read_document(fields, [])) == ["u: a", "a: b"]


def test_segments_of_one_role_may_follow_each_other_and_without_one_are_the_users() -> None:
    fields = segments((None, "a"), ("user", "b"), ("answer", "c"), ("assistant", "d"), ("gpt", ""), ("human", "e"))
    assert spell(read_document(fields, [])) == ["u: a", "u: b", "a: c", "a: d", "u: e"]


def test_a_conversation_may_begin_with_the_assistant_and_end_with_the_user() -> None:
    assert spell(read_document(values(("gpt", "Hello"), ("human", "Bye")), [])) == ["a: Hello", "u: Bye"]


def test_a_piece_may_be_of_any_kind() -> None:
    heard = [{"type": "sound", "sound": "0.wav"}, said("What?")]
    found = read_document(messages(("user", heard), ("assistant", "A dog.")), ["0"])
    assert found == [
        Segment(piece="0", kind="sound"),
        Segment(text="What?"),
        Segment(text="A dog.", role="assistant"),
    ]


# What is refused.

ASKED = ("user", "a"), ("assistant", "b")


@pytest.mark.parametrize(
    ("fields", "held", "named"),
    [
        (messages(("tool", "a")), [], ["role", "'tool'", *ROLE_OF]),
        (values(("bot", "a")), [], ["from", "'bot'"]),
        (segments(("bot", "a")), [], ["role", "'bot'"]),
        ({"messages": [{"content": "a"}]}, [], ["role", None]),
        ({"messages": ["a"]}, [], ["role", None]),
        ({"messages": "a"}, [], ["messages", "'a'"]),
        ({"conversations": {}}, [], ["conversations", "{}"]),
        ({"conversations": [{"from": "gpt"}]}, [], ["value", None]),
        (messages(("user", 3)), [], ["content", 3]),
        (messages(("user", "a"), ("user", "b"), ("assistant", "c")), [], ["turns 1", 2, "user"]),
        (values(*ASKED, ("gpt", "c")), [], ["turns 2", 3, "assistant"]),
        (messages(("user", "a")), [], ["no", "assistant", 1]),
        (messages(("user", "a"), ("assistant", " ")), [], ["turn 2", "assistant"]),
        (messages(("user", None), ("assistant", "b")), [], ["turn 1", "user"]),
        (values(("human", "a<image>"), ("gpt", "b"), image=["0.png", "1.png"]), ["0", "1"], [1, PLACE, 2]),
        (values(("human", "<image><image>"), ("gpt", "b"), image="0.png"), ["0"], [2, PLACE, 1]),
        (values(*ASKED), ["0"], [0, PLACE, 1]),
        (values(("human", "<image>"), ("gpt", "b"), image="0.png"), [], [1, 0]),
        (values(*ASKED, image=3), [], ["image", 3]),
        (messages(("user", [said("a"), shown("1.png")]), ("assistant", "b")), ["0"], [1, "0"]),
        (messages(("user", [said("a"), shown("0.png"), shown("0.png")]), ("assistant", "b")), ["0"], [2, 1]),
        (messages(("user", [said("a"), shown()]), ("assistant", "b")), [], ["image"]),
        (messages(*ASKED), ["0"], [0, 1]),
        (
            messages(("user", [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}])),
            [],
            ["https://x.org"],
        ),
        (messages(("user", [{"type": "image_url", "image_url": "data:image/png;base64,iVBO"}])), [], ["data:image"]),
        (messages(("user", [shown("s3://b/a.png")])), ["a"], ["s3://b"]),
        (values(("human", "<image>"), ("gpt", "b"), image="https://x.org/a.png"), ["0"], ["https://x.org"]),
    ],
)
def test_what_is_no_conversation_is_refused_in_a_line(
    fields: dict[str, Any], held: Sequence[str], named: list[object]
) -> None:
    assert names(refused(read_document, fields, held), *named)


def test_what_is_refused_is_refused_without_a_word_too_long_to_read() -> None:
    assert len(refused(read_document, messages(("user", [shown("data:" + "x" * 9999)])), [])) < 300
    assert len(refused(read_document, {"messages": [{"role": "x", "content": "y" * 9999}]}, [])) < 300
