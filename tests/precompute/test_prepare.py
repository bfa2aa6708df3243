from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from oneflow_dist.data.latents import decode_array, encode_texts
from oneflow_dist.modality import TAKEN_TOKENS
from oneflow_dist.precompute.prepare import Picture, PreparedSample, prepare_sample
from tests.messages import naming
from tests.precompute.making import apng, encode, make_tools, picture, png, show, wav


def prepare(files: dict[str, bytes], **options: Any) -> PreparedSample:
    return prepare_sample("key", files, make_tools(**options).preparation())


def member_names(sample: PreparedSample) -> list[str]:
    return [f"<{member.name}>" if isinstance(member, Picture) else member[0] for member in sample.members]


def content(sample: PreparedSample, extension: str) -> bytes:
    return next(member[1] for member in sample.members if not isinstance(member, Picture) and member[0] == extension)


def tokens(sample: PreparedSample) -> np.ndarray:
    return decode_array(content(sample, "tokens.npy"), "tokens")


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_pair_keeps_its_order_and_its_files() -> None:
    sample = prepare({"txt": b" a cat\n", "png": png(0), "json": b'{"width": 1, "height" : 2}'})
    assert member_names(sample) == ["txt", "<>", "json", "tokens.npy"]
    assert content(sample, "txt") == b" a cat\n"
    assert content(sample, "json") == b'{"width": 1, "height" : 2}'
    assert np.array_equal(tokens(sample), decode_array(encode_texts([list(b"a cat")]), "x"))


def test_a_pair_learns_the_size_that_its_picture_had() -> None:
    sample = prepare({"png": png(0, 30, 40), "txt": b"x", "json": '{"artist": "é \\ud800", "width": 3}'.encode()})
    assert json.loads(content(sample, "json")) == {"artist": "é \ud800", "width": 3, "height": 30}
    assert json.loads(content(prepare({"png": png(0, 30, 40), "txt": b"x"}), "json")) == {"width": 40, "height": 30}


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    sample = prepare({"txt": b"\xef\xbb\xbfa cat", "png": png(0)})
    assert content(sample, "txt") == b"a cat"
    assert np.array_equal(tokens(sample), decode_array(encode_texts([list(b"a cat")]), "x"))
    with pytest.raises(ValueError, match=naming("key")):
        prepare({"txt": b"\xef\xbb\xbf", "png": png(0)})
    assert tokens(prepare({"txt": b"\xef\xbb\xbf", "png": png(0)}, allow_missing_text=True)).tolist() == [0]


def test_half_a_surrogate_pair_is_stored_as_json_and_tokenized_as_unknown() -> None:
    fields = b'{"question": "a\\ud800", "answer": "b"}'
    sample = prepare({"json": fields, "png": png(0)})
    assert json.loads(content(sample, "json").decode("utf-8"))["question"] == "a\ud800"
    assert bytes(tokens(sample)[3:].tolist()) == "a\ufffdb".encode()


def test_a_document_keeps_its_json_and_names_its_pictures() -> None:
    segments = [{"type": "text", "text": "one"}, {"type": "image", "image": "0.png"}, {"type": "text", "text": "two"}]
    files = {"json": to_json({"segments": segments}), "0.png": png(0)}
    sample = prepare(files)
    assert member_names(sample) == ["json", "<0>", "tokens.npy"]
    assert content(sample, "json") == files["json"]
    assert np.array_equal(tokens(sample), decode_array(encode_texts([list(b"one"), list(b"two")]), "x"))


def test_sounds_and_moving_pictures_are_kept_as_they_are() -> None:
    files = {name.partition(".")[2]: data for name, data in show(0)}
    sample = prepare(files)
    assert member_names(sample) == ["json", "0.wav", "<1>", "2.apng", "tokens.npy"]
    for name in ("json", "0.wav", "2.apng"):
        assert content(sample, name) == files[name]
    for name, data in (("wav", wav()), ("apng", apng())):
        alone = prepare({name: data, "txt": b"x"}, allow_missing_picture=False)
        assert member_names(alone) == [name, "txt", "tokens.npy"]  # no .json: no picture has a size


def test_text_alone_and_a_question_are_samples() -> None:
    assert tokens(prepare({"txt": b"x"})).tolist() == [1, 1, ord("x")]
    sample = prepare({"png": png(0), "json": to_json({"question": "q?", "answer": True})})
    assert tokens(sample).tolist() == [2, 2, 4, *b"q?", *b"true"]


SPELLED = "".join([*TAKEN_TOKENS, "<|image|>"])


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SPELLED}]}]},
        {"conversations": [{"from": "human", "value": f"<image>\n{SPELLED}"}], "image": "coco/1.jpg"},
        {"segments": [{"type": "image", "image": "0.png"}, {"type": "text", "text": SPELLED}]},
    ],
    ids=["messages", "LLaVA", "segments"],
)
def test_a_conversation_is_tokenized_turn_by_turn_and_special_tokens_stay_text(fields: dict[str, Any]) -> None:
    """Its picture need not be called as its latents will be."""
    answer = {"from": "gpt", "value": "so", "role": "assistant", "content": "so", "type": "text", "text": "so"}
    fields = {key: [*value, answer] if isinstance(value, list) else value for key, value in fields.items()}
    sample = prepare({"0.png": png(0), "json": to_json(fields)})
    assert tokens(sample).tolist() == [2, len(SPELLED), 2, *SPELLED.encode(), *b"so"]
    assert [picture.name for picture in sample.pictures] == ["0"]


def test_a_caption_without_its_picture_is_no_sample_unless_that_is_allowed() -> None:
    with pytest.raises(ValueError, match=naming("--allow-missing-picture")):
        prepare({"txt": b"x"}, allow_missing_picture=False)
    sample = prepare({"json": to_json({"question": "q?", "answer": "a"})}, allow_missing_picture=False)
    assert tokens(sample).tolist() == [2, 2, 1, *b"q?a"]


def test_a_picture_is_cut_to_its_bucket() -> None:
    (found,) = prepare({"png": png(3, 40, 10), "txt": b"x"}).pictures
    assert found.pixels.shape == (20, 12, 3)
    (same,) = prepare({"png": png(3, 16, 16), "txt": b"x"}).pictures
    assert np.array_equal(same.pixels, np.asarray(picture(3, 16, 16)))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"png": png(0)}, ["--allow-missing-text"]),
        ({"png": png(0), "txt": b" \n"}, ["key"]),
        ({"json": b"{}"}, ["key", "json"]),
        ({"txt": b"x", "json": b"[1]"}, ["json"]),
        ({"png": png(0), "npy": b"", "txt": b"x"}, ["npy"]),
        ({"0.tokens.png": png(0), "txt": b"x"}, ["'0.tokens'"]),
        ({"png": png(0), "jpg": png(0), "txt": b"x"}, ["''"]),
        ({"png": png(0), "wav": wav(), "txt": b"x"}, ["key", "png, wav"]),
        ({"0.png": png(0), "0.apng": apng(), "json": to_json({"question": "q", "answer": "a"})}, ["0.png, 0.apng"]),
        ({"png": b"", "txt": b"x"}, ["png", 0]),
        ({"wav": wav()[:-3], "txt": b"x"}, ["wav"]),
        ({"wav": png(0), "txt": b"x"}, ["wav"]),
        ({"apng": apng()[:-30], "txt": b"x"}, ["apng"]),
        ({"apng": wav(), "txt": b"x"}, ["apng", "PNG"]),
        (
            {"json": to_json({"segments": [{"type": "image", "image": "9.png"}]}), "0.png": png(0)},
            ["key", 1, 9, 1, 0],
        ),
    ],
)
def test_what_is_wrong_with_a_sample_is_said(files: dict[str, bytes], named: list[object]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        prepare(files)


def test_a_document_of_nothing_is_no_sample() -> None:
    with pytest.raises(ValueError):
        prepare({"json": to_json({"segments": []})})


@pytest.mark.parametrize("broken", [b"{", b"\xff\xfe\xfd", b"[" * 100_000, b"9" * 5000])
def test_json_that_cannot_be_read_is_broken(broken: bytes) -> None:
    with pytest.raises(ValueError, match=naming("key", "json")):
        prepare({"json": broken, "txt": b"x"})


def test_text_may_be_missing_where_that_is_allowed() -> None:
    for files in ({"png": png(0)}, {"png": png(0), "txt": b"\n"}):
        sample = prepare(files, allow_missing_text=True)
        assert member_names(sample) == ["<>", "json", "tokens.npy"]
        assert tokens(sample).tolist() == [0]


def test_the_name_of_a_picture_does_not_bind_its_format() -> None:
    assert len(prepare({"png": encode(picture(0), "WEBP"), "txt": b"x"}).pictures) == 1
