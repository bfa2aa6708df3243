from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from oneflow_dist.data.latents import decode_array, encode_texts
from oneflow_dist.precompute.prepare import Picture, PreparedSample, prepare_sample
from tests.precompute.making import encode, make_tools, picture, png


def prepare(files: dict[str, bytes], **options: Any) -> PreparedSample:
    return prepare_sample("key", files, make_tools(**options).preparation())


def refusal(files: dict[str, bytes], **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        prepare(files, **options)
    return str(error.value).removeprefix("sample key: ")


def names(sample: PreparedSample) -> list[str]:
    return [f"<{member.name}>" if isinstance(member, Picture) else member[0] for member in sample.members]


def content(sample: PreparedSample, extension: str) -> bytes:
    return next(member[1] for member in sample.members if not isinstance(member, Picture) and member[0] == extension)


def tokens(sample: PreparedSample) -> np.ndarray:
    return decode_array(content(sample, "tokens.npy"), "tokens")


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_pair_keeps_its_order_and_its_files() -> None:
    sample = prepare({"txt": b" a cat\n", "png": png(0), "json": b'{"width": 1, "height" : 2}'})
    assert names(sample) == ["txt", "<>", "json", "tokens.npy"]
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
    assert refusal({"txt": b"\xef\xbb\xbf", "png": png(0)}).startswith("its caption is empty; ")
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
    assert names(sample) == ["json", "<0>", "tokens.npy"]
    assert content(sample, "json") == files["json"]
    assert np.array_equal(tokens(sample), decode_array(encode_texts([list(b"one"), list(b"two")]), "x"))


def test_text_alone_and_a_question_are_samples() -> None:
    assert tokens(prepare({"txt": b"x"})).tolist() == [1, 1, ord("x")]
    sample = prepare({"png": png(0), "json": to_json({"question": "q?", "answer": True})})
    assert tokens(sample).tolist() == [2, 2, 4, *b"q?", *b"true"]


def test_a_caption_without_its_picture_is_no_sample_unless_that_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"^it has no picture; add it, or allow it with --allow-missing-picture$"):
        prepare({"txt": b"x"}, allow_missing_picture=False)
    sample = prepare({"json": to_json({"question": "q?", "answer": "a"})}, allow_missing_picture=False)
    assert tokens(sample).tolist() == [2, 2, 1, *b"q?a"]


def test_a_picture_is_cut_to_its_bucket() -> None:
    (found,) = prepare({"png": png(3, 40, 10), "txt": b"x"}).pictures
    assert found.pixels.shape == (20, 12, 3)
    (same,) = prepare({"png": png(3, 16, 16), "txt": b"x"}).pictures
    assert np.array_equal(same.pixels, np.asarray(picture(3, 16, 16)))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"png": png(0)}, "it has no caption; write one, or allow it with --allow-missing-text"),
        ({"png": png(0), "txt": b" \n"}, "its caption is empty; remove the sample or write a caption"),
        (
            {"json": b"{}"},
            "a pair is one .txt and one image, but it holds json; add what is missing, or a .json with segments",
        ),
        ({"json": to_json({"segments": []})}, "it holds neither text nor a picture"),
        ({"txt": b"x", "json": b"[1]"}, "its .json is no object"),
        ({"png": png(0), "npy": b"", "txt": b"x"}, "it holds an array (npy); only pictures and text can be encoded"),
        (
            {"0.tokens.png": png(0), "txt": b"x"},
            "its picture cannot be called '0.tokens': another file of its latents would be called so",
        ),
        (
            {"png": png(0), "jpg": png(0), "txt": b"x"},
            "its picture cannot be called '': another file of its latents would be called so",
        ),
        ({"png": b"", "txt": b"x"}, "png: its picture is empty (0 bytes)"),
        (
            {"json": to_json({"segments": [{"type": "image", "image": "9.png"}]}), "0.png": png(0)},
            "its segments name 1 images (9) but it holds 1 (0); name each once",
        ),
    ],
)
def test_what_is_wrong_with_a_sample_is_said(files: dict[str, bytes], reason: str) -> None:
    assert refusal(files) == reason


@pytest.mark.parametrize("broken", [b"{", b"\xff\xfe\xfd", b"[" * 100_000, b"9" * 5000])
def test_json_that_cannot_be_read_is_broken(broken: bytes) -> None:
    assert refusal({"json": broken, "txt": b"x"}).startswith("its .json is broken (")


def test_text_may_be_missing_where_that_is_allowed() -> None:
    for files in ({"png": png(0)}, {"png": png(0), "txt": b"\n"}):
        sample = prepare(files, allow_missing_text=True)
        assert names(sample) == ["<>", "json", "tokens.npy"]
        assert tokens(sample).tolist() == [0]


def test_the_name_of_a_picture_does_not_bind_its_format() -> None:
    assert len(prepare({"png": encode(picture(0), "WEBP"), "txt": b"x"}).pictures) == 1
