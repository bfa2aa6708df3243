from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.containers import Document, PiecePart, ShardRecord, TextPart
from oneflow_dist.data.conversations import Segment
from oneflow_dist.data.decoding import (
    CAPTION,
    Reading,
    decode_record,
    list_pieces,
    read_fields,
    read_segments,
)
from oneflow_dist.data.latents import CHECK, decode_array, decode_texts, encode_texts
from oneflow_dist.data.moving import encode_animation
from oneflow_dist.data.sound import encode_sound, encode_wave
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.modality import TAKEN_TOKENS, Modalities
from tests.messages import Message, names
from tests.pieces import SOUND, VECTOR, VIDEO, VISION, modality
from tests.tars import npy, png

IMAGES = {"image": modality()}
TOKENIZER = load_tokenizer("bytes", IMAGES)
KEY = "pets/cats-000/0001"
LATENTS = {"autoencoder": {"scaling_factor": 2.0, "shift_factor": 0.5}}
TOKENIZED = {"tokenizer": {"sha256": TOKENIZER.sha256}}


def record(**files: bytes) -> ShardRecord:
    """File names with _ for the dot."""
    return ShardRecord(key=KEY, files={name.replace("_", ".").lstrip("."): data for name, data in files.items()})


def table(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def document(*segments: Any, **files: bytes) -> ShardRecord:
    return record(json=table(segments=segments), **files)


def text(content: str, **more: str) -> dict[str, str]:
    return {"type": "text", "text": content, **more}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


PAIR = record(txt=b" a cat\n", png=png(255))
STORY = document(text("one"), image("b.png"), text("two"), text("three"), image("a.png"), b_png=png(0), a_png=png(255))


def decode(
    source: ShardRecord,
    header: dict[str, Any] | None = None,
    caption: str = CAPTION,
    reading: Reading | None = None,
    tokenizer: Tokenizer = TOKENIZER,
    modalities: Modalities = IMAGES,
    **more: Any,
) -> Document:
    fields, with_header = read_fields(source), replace(source, header=header or {})
    return decode_record(with_header, fields, caption, reading or Reading(), tokenizer, modalities, **more)


def spell(made: Document) -> list[str]:
    """The parts in reading order: text, an image as # and its first value, an answer behind an arrow."""
    spelled = []
    for part in made.parts:
        if isinstance(part, TextPart):
            spelled.append("-> " * (part.role == "assistant") + TOKENIZER.decode(part.tokens))
        else:
            spelled.append(f"#{part.posterior.flat[0]:g}")
    return spelled


# Pairs and documents.


def test_a_pair_is_its_caption_then_its_image() -> None:
    made = decode(PAIR)
    assert made.key == KEY
    assert spell(made) == ["a cat", "#1"]


def test_a_document_is_in_the_order_of_its_segments_and_not_of_its_files() -> None:
    made = decode(STORY)
    assert spell(made) == ["one", "#-1", "two", "three", "#1"]


@given(st.lists(st.text(min_size=1).filter(lambda text: text[0] != "\ufeff"), min_size=1, max_size=4))
def test_every_text_is_tokenized_by_itself(texts: list[str]) -> None:
    """What stands before or after it changes none of its tokens; nothing is put between."""
    made = decode(document(*map(text, texts)))
    assert [part.tokens for part in made.parts if isinstance(part, TextPart)] == [
        TOKENIZER.encode(content) for content in texts
    ]


def test_special_tokens_in_a_caption_stay_text() -> None:
    first = decode(record(txt=b"<|image|><|eos|>", png=png(0))).parts[0]
    assert isinstance(first, TextPart)
    assert first.tokens == [*b"<|image|><|eos|>"]


SPELLED = "".join([*TAKEN_TOKENS, "<|image|>"])
SHAPES = {
    "pair": {"txt": SPELLED.encode()},
    "question": {"json": table(question=SPELLED, answer=SPELLED)},
    "segments": {"json": table(segments=[text(SPELLED), text(SPELLED, role="answer")])},
    "ShareGPT": {"json": table(conversations=[{"from": "human", "value": SPELLED}, {"from": "gpt", "value": SPELLED}])},
    "messages": {
        "json": table(
            messages=[{"role": "user", "content": SPELLED}, {"role": "assistant", "content": [text(SPELLED)]}]
        )
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_special_tokens_spelled_out_stay_text_in_every_shape(shape: str) -> None:
    parts = decode(ShardRecord(key=KEY, files=SHAPES[shape])).parts
    assert [part.tokens for part in parts if isinstance(part, TextPart)] == [[*SPELLED.encode()]] * len(parts)
    assert [part.role for part in parts] == ["user", "assistant"][: len(parts)]


def test_a_conversation_keeps_the_roles_of_its_texts_and_its_pieces() -> None:
    """What is wrong with one is said with the name of its sample."""
    turns = [{"role": "user", "content": "paint"}, {"role": "assistant", "content": [image("0.png"), text("so")]}]
    made = decode(record(json=table(messages=turns), _0_png=png(255)))
    assert spell(made) == ["paint", "#1", "-> so"]
    assert [part.role for part in made.parts] == ["user", "assistant", "assistant"]
    assert names(refusal(record(json=table(messages=turns[:1]))), f"sample {KEY}", "assistant")


def test_a_caption_that_is_asked_for_is_no_conversation() -> None:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    source = record(json=table(conversations=turns, short="cat"), png=png(0))
    assert spell(decode(source)) == ["#-1", "-> a cat"]
    assert spell(decode(source, caption="short")) == ["cat", "#-1"]


def test_empty_segments_are_left_out() -> None:
    source = document(text(""), image("a.png"), text(""), text("end"), a_png=png(0))
    assert spell(decode(source)) == ["#-1", "end"]


def test_a_caption_or_an_image_alone_is_a_document_too() -> None:
    assert spell(decode(record(txt=b"a cat"))) == ["a cat"]
    assert spell(decode(record(png=png(0)))) == ["#-1"]


@pytest.mark.parametrize("content", [b'{"width": 8}', b"[1, 2]", b'"text"', b"null"])
def test_a_json_without_segments_is_not_read_as_a_document(content: bytes) -> None:
    assert spell(decode(record(txt=b"a cat", png=png(255), json=content))) == ["a cat", "#1"]


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "npy"])
def test_five_kinds_of_images_are_known(extension: str) -> None:
    source = record(txt=b"a cat", **{extension: b"bytes"})
    assert list_pieces(source) == [""]
    assert read_segments(source, {}) == [Segment(text="a cat"), Segment(piece="")]


def test_an_image_is_known_by_its_name_without_the_kind_of_file() -> None:
    """So that a document stays the same when its pictures become latents."""
    source = document(image("A.PNG"), image("b.c.jpg"), a_npy=b"", b_c_webp=b"")
    assert list_pieces(source) == ["a", "b.c"]
    assert read_segments(source, read_fields(source)) == [
        Segment(piece="a", kind="image"),
        Segment(piece="b.c", kind="image"),
    ]


def test_arrays_that_belong_to_an_image_or_the_text_are_no_images() -> None:
    source = record(npy=b"", mirrored_npy=b"", features_npy=b"", tokens_npy=b"", _0_mirrored_npy=b"", _0_npy=b"")
    assert list_pieces(source) == ["", "0"]


def test_images_keep_their_own_shapes() -> None:
    source = document(image("a.png"), image("b.png"), a_png=png(0, (4, 12)), b_png=png(255, (8, 4)))
    parts = [part for part in decode(source).parts if isinstance(part, PiecePart)]
    assert [part.posterior.shape for part in parts] == [(1, 1, 12, 4), (1, 1, 4, 8)]


def test_pixels_are_exact_and_neither_shifted_nor_mirrored() -> None:
    part = decode(PAIR, LATENTS).parts[1]
    assert isinstance(part, PiecePart)
    assert (part.posterior == 1.0).all()
    assert (part.posterior.shape, part.mirrored.shape) == ((1, 1, 8, 8), (0, 1, 8, 8))
    assert (part.shift, part.scale) == (0.0, 1.0)


# Questions and captions from fields of the .json.


def test_a_question_with_its_answer_follows_its_images() -> None:
    source = record(json=table(question=" how many? ", answer="two"), a_png=png(0), b_png=png(255))
    assert spell(decode(source)) == ["#-1", "#1", "how many?", "-> two"]


def test_a_question_may_have_other_names() -> None:
    source = record(json=table(ask="is it?", reply=True, question="no", answer="no"), png=png(0))
    assert spell(decode(source, reading=Reading(question="ask", answer="reply"))) == ["#-1", "is it?", "-> true"]


@pytest.mark.parametrize(("value", "spelled"), [(True, "true"), (False, "false"), (3, "3"), (2.5, "2.5"), (" a ", "a")])
def test_numbers_and_truth_values_are_text_as_in_json(value: Any, spelled: str) -> None:
    assert spell(decode(record(json=table(question="q", answer=value)))) == ["q", f"-> {spelled}"]


def test_a_question_without_an_answer_is_a_pair() -> None:
    assert spell(decode(record(json=table(question="q"), txt=b"a cat", png=png(0)))) == ["a cat", "#-1"]


def test_answers_of_a_document_are_marked_by_their_role() -> None:
    turns = [text("q1", role="question"), text("a1", role="answer"), text("q2"), text("a2", role="answer")]
    source = document(image("a.png"), *turns, a_png=png(0))
    assert spell(decode(source)) == ["#-1", "q1", "-> a1", "q2", "-> a2"]


def test_a_caption_may_be_a_field() -> None:
    source = record(json=table(short="cat", long="a cat on a mat"), txt=b"old", png=png(0))
    assert spell(decode(source, caption="short")) == ["cat", "#-1"]
    assert spell(decode(source, caption="long")) == ["a cat on a mat", "#-1"]
    assert spell(decode(source)) == ["old", "#-1"]


def test_the_caption_of_a_document_is_in_its_segments() -> None:
    assert spell(decode(STORY, caption="short")) == spell(decode(STORY))


# Latents and stored tokens.


def test_a_latent_is_read_with_the_autoencoder_of_its_shard() -> None:
    posterior = np.stack([np.full((1, 4, 8), 3.0), np.full((1, 4, 8), 0.25)])
    made = decode(record(txt=b"a cat", npy=npy(posterior, "<f2"), mirrored_npy=npy(-posterior, "<f2")), LATENTS)
    part = made.parts[1]
    assert isinstance(part, PiecePart)
    assert np.array_equal(part.posterior, posterior)
    assert np.array_equal(part.mirrored, -posterior)
    assert (part.shift, part.scale) == (0.5, 2.0)


@given(st.lists(st.text(min_size=1).filter(lambda text: text[0] != "\ufeff"), min_size=1, max_size=4))
def test_stored_tokens_are_what_tokenizing_gives(texts: list[str]) -> None:
    source = document(*map(text, texts))
    stored = encode_texts([TOKENIZER.encode(content) for content in texts])
    again = ShardRecord(key=KEY, files={**source.files, "tokens.npy": stored})
    for one, other in zip(decode(source).parts, decode(again, TOKENIZED).parts, strict=True):
        assert isinstance(one, TextPart)
        assert isinstance(other, TextPart)
        assert one.tokens == other.tokens


def stored(*texts: list[int]) -> bytes:
    return encode_texts(list(texts))


def test_stored_tokens_lie_as_number_lengths_ids() -> None:
    for texts, stored in (([[7, 8], [], [9]], [3, 2, 0, 1, 7, 8, 9]), ([], [0])):
        assert decode_array(encode_texts(texts), "x").tolist() == stored
        assert decode_texts(encode_texts(texts), "x") == texts


def test_stored_tokens_take_the_place_of_tokenizing() -> None:
    first, _ = decode(record(txt=b"a cat", png=png(0), tokens_npy=stored([1, 2])), TOKENIZED).parts
    assert isinstance(first, TextPart)
    assert first.tokens == [1, 2]


def test_a_record_without_text_has_no_stored_tokens() -> None:
    assert spell(decode(record(png=png(0), tokens_npy=stored()), TOKENIZED)) == ["#-1"]


def test_stored_tokens_are_not_those_of_another_caption_or_question() -> None:
    """They are of the .txt, or of the fields `question` and `answer`."""
    pair = record(json=table(short="cat"), txt=b"old", tokens_npy=stored([*b"old"]))
    assert spell(decode(pair, TOKENIZED, caption="short")) == ["cat"]
    both = record(json=table(question="q", answer="a", ask="Q", reply="A"), tokens_npy=stored([*b"q"], [*b"a"]))
    assert spell(decode(both, TOKENIZED)) == ["q", "-> a"]
    assert spell(decode(both, TOKENIZED, reading=Reading(question="ask", answer="reply"))) == ["Q", "-> A"]


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    mark = "\ufeff"
    assert spell(decode(record(txt=f"{mark} a cat".encode(), png=png(0)))) == ["a cat", "#-1"]
    assert spell(decode(document(text(f"{mark}one"), text(mark), text(f"two{mark}")))) == ["one", f"two{mark}"]
    fields = table(question=f"{mark}q", answer=f"{mark} a", short=f"{mark}s")
    assert spell(decode(record(json=fields))) == ["q", "-> a"]
    assert spell(decode(record(json=mark.encode() + fields), caption="short", reading=Reading(question="x"))) == ["s"]


def test_half_a_surrogate_pair_is_an_unknown_character() -> None:
    source = record(json=b'{"question": "a\\ud800", "answer": "b"}')
    assert spell(decode(source)) == ["a\ufffd", "-> b"]
    assert read_segments(source, read_fields(source))[0] == Segment(text="a\ufffd")  # printed and hashed elsewhere


# What is refused, and how it is said.


def refusal(source: ShardRecord, header: Mapping[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(ValueError) as error:
        decode(source, header, **more)
    return Message(error.value)


@pytest.mark.parametrize(
    ("named", "held", "message"),
    [
        (["a.png", "b.png"], ["a"], "its segments name 2 pieces (a, b) but it holds 1 (a)"),
        (["a.png"], ["a", "b"], "its segments name 1 pieces (a) but it holds 2 (a, b)"),
        (["a.png", "a.png"], ["a"], "its segments name 2 pieces (a, a) but it holds 1 (a)"),
        ([], ["a"], "its segments name 0 pieces () but it holds 1 (a)"),
    ],
    ids=["missing", "not named", "named twice", "none named"],
)
def test_images_that_are_not_named_once_each_are_refused(named: list[str], held: list[str], message: str) -> None:
    source = document(*map(image, named), **{f"{name}_png": png(0) for name in held})
    assert refusal(source) == f"sample {KEY}: {message}; name each once"


def test_a_picture_may_stand_beside_its_latent_which_is_what_is_read() -> None:
    """For an encoder that looks at it in training."""
    latent = npy(np.full((2, 1, 4, 4), 3.0))
    for source in (document(image("a.png"), a_png=png(0), a_npy=latent), record(png=png(0), npy=latent)):
        assert len(list_pieces(source)) == 1
        assert spell(decode(source, LATENTS)) == ["#3"]


@pytest.mark.parametrize("other", ["jpg", "wav", "apng"])
@pytest.mark.parametrize("name", ["", "a."])
def test_two_files_of_one_name_are_refused(name: str, other: str) -> None:
    """Neither can be meant by it."""
    files = {f"{name}png": png(0), f"{name}{other}": b"x"}
    for more in ({"txt": b"a cat"}, {"json": table(question="q", answer="a")}, {"json": table(segments=[text("a")])}):
        message = refusal(ShardRecord(key=KEY, files={**files, **more}))
        assert names(message, f"sample {KEY}", f"{name}png", f"{name}{other}", "0.png", "1.wav")


@pytest.mark.parametrize(
    ("source", "held"),
    [
        (record(json=b"{}"), "json"),
        (record(txt=b"a cat", _0_png=b"x", _1_png=b"x"), "0.png, 1.png, txt"),
    ],
    ids=["nothing", "two images"],
)
def test_what_is_neither_pair_nor_document_is_named_with_what_it_holds(source: ShardRecord, held: str) -> None:
    assert refusal(source) == (
        f"sample {KEY}: a pair is one .txt and one image, but it holds {held}; "
        "add what is missing, or a .json with segments"
    )


@pytest.mark.parametrize("caption", [b"", b" \n\t ", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"])
def test_an_empty_caption_is_named(caption: bytes) -> None:
    assert refusal(record(txt=caption, png=png(0))) == (
        f"sample {KEY}: its caption is empty; remove the sample or write a caption"
    )


def test_a_caption_that_is_no_utf8_is_named() -> None:
    message = refusal(record(txt=b"caf\xe9", png=png(0)))
    assert message.startswith(f"sample {KEY}: its caption is no UTF-8 (")
    assert str(message).endswith("); write it again")


@pytest.mark.parametrize("content", [b'{"segments": [', b"", b"\xff\xfe\xfd", b"{'a': 1}"])
def test_a_broken_json_is_named(content: bytes) -> None:
    message = refusal(record(json=content, png=png(0)))
    assert message.startswith(f"sample {KEY}: its .json is broken (")
    assert str(message).endswith("); write the sample again")


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "video"},
        {"type": "image"},
        {},
        {"text": "no type"},
        {"type": "text"},
        {"type": "text", "text": 3},
        {"type": "image", "image": ["a.png"]},
        "a cat",
        None,
    ],
)
def test_a_segment_that_is_neither_text_nor_image_is_named(entry: Any) -> None:
    assert refusal(document(entry)) == (
        f"sample {KEY}: segment {entry!r} is neither text nor a piece; write the sample again"
    )


@pytest.mark.parametrize("segments", [None, 3, "text", {"type": "text"}])
def test_segments_that_are_no_list_are_named(segments: Any) -> None:
    assert refusal(record(json=table(segments=segments))) == (
        f"sample {KEY}: segments is {segments!r}, not a list; write it again"
    )


@pytest.mark.parametrize("value", ["", "  ", "\ufeff", None, [], {}])
def test_a_field_without_text_is_named(value: Any) -> None:
    advice = "; write it or filter it"
    assert refusal(record(json=table(short=value), png=png(0)), caption="short") == (
        f"sample {KEY}: its .json has no text in 'short', but {value!r}{advice}"
    )
    assert refusal(record(json=table(question="q", answer=value))) == (
        f"sample {KEY}: its .json has no text in 'answer', but {value!r}{advice}"
    )


def test_a_field_that_is_not_there_is_named() -> None:
    assert refusal(record(txt=b"a cat", png=png(0)), caption="short").startswith(
        f"sample {KEY}: its .json has no text in 'short', but None"
    )


def test_a_broken_image_is_named_by_its_name() -> None:
    source = document(image("a.png"), image("b.png"), a_png=png(0), b_png=b"broken")
    assert refusal(source).startswith(f"sample {KEY}, b: its picture is ")
    assert refusal(record(txt=b"a cat", png=b"broken")).startswith(f"sample {KEY}: its picture is ")


def test_an_image_that_patches_do_not_fill_is_named() -> None:
    assert names(refusal(record(txt=b"a cat", png=png(0, (9, 8)))), f"sample {KEY}", [8, 9], [4, 4])


def test_a_latent_without_a_header_is_named() -> None:
    assert refusal(document(image("0.jpg"), _0_npy=npy(np.zeros((2, 1, 4, 4))))) == (
        f"sample {KEY}, 0: a latent in a shard without a header; write it by oneflow precompute, or call it "
        "0.image.npy if it holds values as they are"
    )


def test_a_broken_latent_is_named_by_its_name() -> None:
    assert refusal(document(image("0.jpg"), _0_npy=b"broken"), LATENTS).startswith(f"sample {KEY}, 0: broken .npy (")
    assert refusal(record(npy=npy(np.zeros((2, 1, 4, 4))), mirrored_npy=b"broken"), LATENTS).startswith(
        f"sample {KEY}: broken .npy ("
    )


@pytest.mark.parametrize("header", [{}, {"tokenizer": {"sha256": "0" * 64}}], ids=["unknown", "other"])
def test_tokens_of_another_tokenizer_are_refused(header: dict[str, Any]) -> None:
    made_by = header.get("tokenizer", {}).get("sha256")
    assert refusal(record(txt=b"a cat", png=png(0), tokens_npy=stored([1])), header) == (
        f"sample {KEY}: tokenized by {made_by}, but data.tokenizer is {TOKENIZER.sha256} (sha256); "
        "set data.tokenizer to the file that oneflow precompute was given"
    )


def test_tokens_are_compared_with_the_tokenizer_of_the_run() -> None:
    other = replace(TOKENIZER, sha256="1" * 64)
    source = record(txt=b"a cat", png=png(0), tokens_npy=stored([1]))
    assert "but data.tokenizer is 1111" in refusal(source, TOKENIZED, tokenizer=other)


def test_tokens_of_another_number_of_texts_are_refused() -> None:
    source = record(txt=b"a cat", png=png(0), tokens_npy=stored([1], [2]))
    assert refusal(source, TOKENIZED) == (
        f"sample {KEY}: tokens of 2 texts, but it has 1; write it again by oneflow precompute"
    )


@pytest.mark.parametrize("numbers", [[1], [1, 3, 7], [1, 1, 7, 8], [5], [2, 1, 1, 7], [-1]])
def test_tokens_that_do_not_add_up_are_refused(numbers: list[int]) -> None:
    message = refusal(record(txt=b"a cat", png=png(0), tokens_npy=npy(numbers, "<i4")), TOKENIZED)
    assert message == f"sample {KEY}, tokens: {len(numbers)} numbers are no texts with their lengths; {CHECK}"


def test_a_text_that_cannot_be_tokenized_is_named() -> None:
    message = refusal(record(txt=b"a" + b" " * 1_000_000 + b"b"))
    assert message == f"sample {KEY}: a text with 1000000 blanks in a row, more than 100000; shorten or remove it"


def head_of_npy(head: str) -> bytes:
    """An .npy file of this head and eight bytes."""
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        head_of_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30, 2, 2, 2), }"),
        head_of_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 2), }"),
        head_of_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, True), }"),
        head_of_npy("{'descr': ('<f4', (-2,)), 'fortran_order': False, 'shape': (1,), }"),
        head_of_npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }"),
        head_of_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        head_of_npy("{1: 2, 'shape': 3}"),
        head_of_npy("(" * 5000),
        head_of_npy("\x00"),
        b"\x93NUMPY",
        b"",
    ],
)
@pytest.mark.parametrize("kind", ["npy", "mirrored.npy", "tokens.npy"])
def test_hostile_arrays_are_named(content: bytes, kind: str) -> None:
    files = {"txt": b"a cat", "npy": npy(np.zeros((2, 1, 4, 4))), "tokens.npy": stored([1]), kind: content}
    assert refusal(ShardRecord(key=KEY, files=files), LATENTS | TOKENIZED).startswith(f"sample {KEY}")


@pytest.mark.parametrize("numbers", [[1.0, 1.0, 7.0], [math.nan], [math.inf, 1.0]])
def test_tokens_that_are_no_whole_numbers_are_refused(numbers: list[float]) -> None:
    message = refusal(record(txt=b"a cat", tokens_npy=npy(numbers, "<f4")), TOKENIZED)
    assert message == f"sample {KEY}, tokens: {len(numbers)} numbers are no texts with their lengths; {CHECK}"


@pytest.mark.parametrize(
    "header", [{"autoencoder": 3}, {"autoencoder": {}}, {"autoencoder": {"shift_factor": 0.0}}, {"autoencoder": []}]
)
def test_a_latent_under_a_header_that_says_too_little_is_named(header: dict[str, Any]) -> None:
    message = refusal(record(npy=npy(np.zeros((2, 1, 4, 4)))), header)
    assert message.startswith(f"sample {KEY}: broken (")
    assert str(message).endswith("); write it again or remove it")


@pytest.mark.parametrize("shape", [(2, 1, 0, 4), (2, 1, 4, 0), (2, 1, 0, 0)])
def test_a_latent_of_no_size_is_named(shape: tuple[int, ...]) -> None:
    assert names(refusal(record(npy=npy(np.zeros(shape))), LATENTS), f"sample {KEY}", list(shape[2:]), [4, 4])


# Sounds, moving pictures, values, and what pictures look like.

MIXED = {"image": modality(), "sound": SOUND, "video": VIDEO, "vector": VECTOR, "vision": VISION}
SOUNDS = MIXED | {"music": replace(SOUND, token="<|music|>", channels=2)}
WAV = encode_wave(0.3 * np.sin(np.arange(48)), 8000)
APNG = encode_animation([Image.new("L", (4, 4), level) for level in (255, 0)], 100, "png")


def piece(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, kind: name}


def shapes(made: Document) -> list[tuple[str, tuple[int, ...]]]:
    """The modality and the shape of each piece, in reading order."""
    return [(part.modality, part.posterior.shape) for part in made.parts if isinstance(part, PiecePart)]


def test_a_document_may_hold_pieces_of_every_modality_in_any_order() -> None:
    segments = [
        piece("sound", "0.wav"),
        text("a"),
        piece("video", "1.apng"),
        image("2.png"),
        piece("vector", "3.vector.npy"),
    ]
    files = {"0.wav": WAV, "1.apng": APNG, "2.png": png(255), "3.vector.npy": npy([1, 2, 3, 4, 5])}
    source = ShardRecord(key=KEY, files={"json": table(segments=segments), **files})
    made = decode(source, modalities=MIXED)
    expected = [("sound", (1, 4, 12)), ("video", (1, 1, 2, 4, 4)), ("image", (1, 1, 8, 8)), ("vector", (1, 5))]
    assert shapes(made) == expected
    assert isinstance(made.parts[1], TextPart)
    values = [part.posterior for part in made.parts if isinstance(part, PiecePart)]
    np.testing.assert_array_equal(values[0][0], encode_sound(WAV, 8000, 4, ""))
    assert [values[1][0, 0, t].mean() for t in (0, 1)] == [1.0, -1.0]
    assert values[3].tolist() == [[1, 2, 3, 4, 5]]
    assert all((part.shift, part.scale) == (0.0, 1.0) for part in made.parts if isinstance(part, PiecePart))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"wav": WAV}, [("sound", (1, 4, 12))]),
        ({"apng": APNG}, [("video", (1, 1, 2, 4, 4))]),
        ({"vector.npy": npy([1, 2, 3, 4, 5])}, [("vector", (1, 5))]),
        ({"image.npy": npy(np.zeros((1, 4, 8)))}, [("image", (1, 1, 4, 8))]),
        ({"music.wav": WAV}, [("music", (1, 2, 24))]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_pair_is_a_caption_and_any_piece(
    files: dict[str, bytes], expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    """The first modality of as many dimensions, or that which the file's name says; arrays are values as they are."""
    assert shapes(decode(ShardRecord(key=KEY, files={"txt": b"a", **files}), modalities=SOUNDS)) == expected


def test_two_modalities_of_one_dimension_are_told_apart_by_the_segment_or_by_the_name() -> None:
    segments = [piece("music", "0.wav"), piece("sound", "1.wav"), piece("sound", "2.music.wav")]
    files = {"0.wav": WAV, "1.wav": WAV, "2.music.wav": WAV}
    source = ShardRecord(key=KEY, files={"json": table(segments=segments), **files})
    assert [kind for kind, _ in shapes(decode(source, modalities=SOUNDS))] == ["music", "sound", "sound"]
    question = ShardRecord(key=KEY, files={"json": table(question="q", answer="a"), "0.music.wav": WAV, "1.wav": WAV})
    assert [kind for kind, _ in shapes(decode(question, modalities=SOUNDS))] == ["music", "sound"]
    reordered = {"music": SOUNDS["music"], **MIXED}
    assert [kind for kind, _ in shapes(decode(question, modalities=reordered))] == ["music", "music"]


@pytest.mark.parametrize(
    ("segment", "files", "modalities", "named"),
    [
        (piece("sound", "0.wav"), {"0.wav": WAV}, IMAGES, ("0", "sound", 1, "[modality.image]")),
        (piece("music", "0.wav"), {"0.wav": WAV}, MIXED, ("0", "music", 1, "[modality.sound]")),
        (piece("vision", "0.png"), {"0.png": png(0)}, MIXED, ("0", "vision", 2, "[modality.image]")),
        (image("0.png"), {"0.png": png(0)}, {}, ("0", "image", 2, "no [modality]")),
        (image("0.apng"), {"0.apng": APNG}, {"vision": VISION}, ("0", "image", 3, "[modality.vision]")),
    ],
    ids=["no sound", "another sound", "given only", "text only", "no video"],
)
def test_a_piece_of_a_modality_that_the_config_lacks_is_named_with_those_that_it_has(
    segment: dict[str, str], files: dict[str, bytes], modalities: Modalities, named: tuple[object, ...]
) -> None:
    source = ShardRecord(key=KEY, files={"json": table(segments=[segment]), **files})
    assert names(refusal(source, modalities=modalities), f"sample {KEY}", *named)


def test_what_a_task_leaves_out_needs_no_modality() -> None:
    source = record(txt=b"a cat", wav=WAV)
    assert spell(decode(source, without="pieces")) == ["a cat"]
    assert shapes(decode(source, modalities=MIXED, without="text")) == [("sound", (1, 4, 12))]


def test_an_array_whose_name_says_no_modality_is_a_pictures_latent() -> None:
    """Whatever its segment says: no other array has a scale and a shift."""
    values = npy(np.zeros((4, 6)))
    source = ShardRecord(key=KEY, files={"json": table(segments=[piece("sound", "0.npy")]), "0.npy": values})
    for header in ({}, LATENTS):
        assert names(refusal(source, header, modalities=MIXED), f"sample {KEY}", "0", "0.sound.npy")


# What a given picture looks like.

MAP = npy(np.full((6, 4, 4), 0.5), "<f2")


def looks(source: ShardRecord, modalities: Modalities = MIXED, header: dict[str, Any] = LATENTS) -> list[Any]:
    """Of each piece the shape of its features, None for what has none."""
    made = decode(source, header, modalities=modalities, with_features=True)
    parts = [part for part in made.parts if isinstance(part, PiecePart)]
    return [part.features and (part.features.modality, part.features.posterior.shape) for part in parts]


def test_a_picture_brings_its_features_along_and_nothing_else_has_any() -> None:
    segments = [piece("sound", "0.wav"), image("1.jpg"), piece("vector", "2.vector.npy"), image("3.png")]
    files = {"0.wav": WAV, "1.npy": npy(np.zeros((2, 1, 4, 4))), "1.features.npy": MAP}
    files |= {"2.vector.npy": npy(np.zeros(5)), "3.png": png(0), "3.features.npy": MAP}
    source = ShardRecord(key=KEY, files={"json": table(segments=segments), **files})
    seen = ("vision", (1, 6, 4, 4))
    assert looks(source) == [None, seen, None, seen]
    part = decode(source, LATENTS, modalities=MIXED, with_features=True).parts[1]
    assert isinstance(part, PiecePart)
    assert part.features is not None
    assert (part.features.posterior == 0.5).all()
    assert (part.features.shift, part.features.scale) == (0.0, 1.0)
    assert all(
        part.features is None for part in decode(source, LATENTS, modalities=MIXED).parts if isinstance(part, PiecePart)
    )


LIVE = MIXED | {
    "vision": modality(
        "vision",
        channels=1280,
        shape=(7, 7),
        patch=(1, 1),
        codec="efficientnet-lite0",
        understanding="live",
        loss_weight=0.0,
    )
}


def test_an_encoder_that_looks_in_training_is_given_the_picture_beside_its_latent() -> None:
    source = record(txt=b"a", png=png(255, (20, 12)), npy=npy(np.zeros((2, 1, 4, 4))))
    assert looks(source, LIVE) == [("vision", (1, 3, 224, 224))]
    part = decode(source, LATENTS, modalities=LIVE, with_features=True).parts[1]
    assert isinstance(part, PiecePart)
    assert part.features is not None
    assert (part.features.posterior == 1.0).all()
    assert part.posterior.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("source", "modalities", "named"),
    [
        (record(png=png(0)), IMAGES, ("`understanding`",)),
        (
            record(png=png(0)),
            MIXED,
            ("modality.vision.understanding", "'features'", "oneflow precompute --features"),
        ),
        (record(npy=npy(np.zeros((2, 1, 4, 4)))), LIVE, ("modality.vision.understanding", "'live'")),
        (
            record(png=png(0), features_npy=npy(np.zeros((7, 4, 4)))),
            MIXED,
            ("features", [7, 4, 4], "modality.vision.channels", 6),
        ),
        (
            record(png=png(0), features_npy=npy(np.zeros((4, 6)))),
            MIXED,
            ("features", [4, 6], "modality.vision.channels", 6),
        ),
        (record(png=png(0), features_npy=npy(np.zeros((6, 3, 4)))), MIXED, ("features", [3, 4], [2, 2])),
        (record(png=png(0), features_npy=b"broken"), MIXED, ("features",)),
    ],
    ids=["no modality", "absent", "no picture", "another width", "not a map", "not filled", "broken"],
)
def test_features_that_are_not_there_or_are_others_are_named(
    source: ShardRecord, modalities: Modalities, named: tuple[object, ...]
) -> None:
    message = refusal(source, LATENTS, modalities=modalities, with_features=True)
    assert names(message, f"sample {KEY}", *named)
    decode(source, LATENTS, modalities=modalities)  # where latents are given, features are not looked at
