from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.tokenizer import MAX_BLANKS, SPECIAL_TOKENS, Tokenizer, load_tokenizer, train_ranks, write_ranks
from tests.messages import Message
from tests.pieces import SOUND, VIDEO, modality

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "The dogs' owner didn't see it; they'll say it was 12 345 foxes!",
    "  indented\n\n\tlines, tabs\r\nand    blanks  \n",
    "naïve façade — “quoted” … 東京タワー 🦊🦊",
    "fox fox fox foxes foxing unfox; the then there them",
] * 3
any_text = st.text(st.characters(codec="utf-8"), max_size=60)
near_text = st.text(st.sampled_from("thequickfoxs dogs'1234567\n\t 東京,.!T"), max_size=60)
BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A tokenizer read from a written ranks file, and the Hugging Face tokenizer that its ranks come from."""
    made = []
    original = tokenizers.Tokenizer

    def remember(model: Any) -> Any:
        made.append(original(model))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "Tokenizer", remember)
        ranks = train_ranks(TEXTS, vocab_size=400)
    path = tmp_path_factory.mktemp("ranks") / "words.tiktoken"
    write_ranks(path, ranks)
    return load_tokenizer(str(path)), made[0]


@given(any_text)
def test_bytes_decode_to_what_was_encoded(text: str) -> None:
    assert BYTES.encode(text) == list(text.encode())
    assert BYTES.decode(BYTES.encode(text)) == text


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", "\n"])
def test_more_blanks_in_a_row_than_the_library_bears_are_refused(blank: str) -> None:
    """At a million tiktoken panics, which no `except Exception` catches; its own limit is far above ours."""
    text = f"a{blank * MAX_BLANKS}b"
    assert BYTES.decode(BYTES.encode(text)) == text
    with pytest.raises(ValueError) as error:
        BYTES.encode(f"a b{blank * (MAX_BLANKS + 1)}c")
    assert Message(error.value) == (
        f"a text with {MAX_BLANKS + 1} blanks in a row, more than {MAX_BLANKS}; shorten or remove it"
    )


def test_half_a_surrogate_pair_becomes_the_unknown_character() -> None:
    assert BYTES.encode("a\ud800b") == list("a\ufffdb".encode())


@given(any_text | near_text)
def test_trained_tokens_decode_to_what_was_encoded(trained: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, _ = trained
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(any_text | near_text)
def test_a_ranks_file_gives_the_ids_of_the_tokenizer_it_was_trained_with(
    trained: tuple[Tokenizer, Any], text: str
) -> None:
    tokenizer, original = trained
    assert tokenizer.encode(text) == original.encode(text).ids


@pytest.mark.parametrize("text", sorted(set(TEXTS)))
def test_training_texts_keep_their_ids_and_become_shorter(trained: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, original = trained
    assert tokenizer.encode(text) == original.encode(text).ids
    assert len(tokenizer.encode(text)) < len(text.encode())


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_special_tokens_spelled_out_in_text_stay_text(trained: tuple[Tokenizer, Any], name: str) -> None:
    text = f"see {name} there"
    for tokenizer in (BYTES, trained[0]):
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.vocab_size - len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text


def test_special_tokens_come_after_the_last_rank(trained: tuple[Tokenizer, Any]) -> None:
    assert (BYTES.vocab_size, BYTES.bos, BYTES.encoding.encode_single_token("<|image|>")) == (262, 256, 258)
    tokenizer, original = trained
    ranks = original.get_vocab_size()
    assert (tokenizer.vocab_size, tokenizer.bos) == (ranks + 6, ranks)
    assert tokenizer.decode([tokenizer.bos, ranks + 2]) == "<|bos|><|image|>"
    assert tokenizer.decode([*tokenizer.role_of.values()]) == "<|user|><|assistant|><|system|>"
    assert tokenizer.piece_of == {}


def test_tokens_of_modalities_follow_in_their_order_but_that_of_images_stays_where_it_was(
    trained: tuple[Tokenizer, Any],
) -> None:
    """So that a vocabulary of images alone is what it was, and modalities are added at its end."""
    kinds = {"sound": SOUND, "picture": modality("image"), "video": VIDEO}
    for path in ("bytes", trained[0].encoding.name):
        plain, tokenizer = load_tokenizer(path), load_tokenizer(path, kinds)
        first = plain.bos
        assert tokenizer.piece_of == {"sound": first + 6, "picture": first + 2, "video": first + 7}
        assert (tokenizer.vocab_size, tokenizer.bos) == (plain.vocab_size + 2, first)
        assert tokenizer.sha256 == plain.sha256
        assert tokenizer.decode([*tokenizer.piece_of.values()]) == "<|sound|><|image|><|video|>"
        text = "see <|sound|> there"
        assert tokenizer.encode(text) == plain.encode(text)
        images = load_tokenizer(path, {"image": modality()})
        assert (images.piece_of, images.vocab_size) == ({"image": first + 2}, plain.vocab_size)


def test_broken_bytes_become_replacement_characters() -> None:
    assert BYTES.decode([0x66, 0xFF, 0x6F]) == "f�o"


def test_trained_ranks_hold_every_byte_and_at_most_the_vocabulary() -> None:
    ranks = train_ranks(TEXTS, vocab_size=300)
    assert sorted(ranks.values()) == list(range(300))
    assert {bytes([value]) for value in range(256)} <= set(ranks)
    assert len(train_ranks(["ab"], vocab_size=300)) == 257  # there is nothing more to merge


def test_training_again_gives_the_same_ranks() -> None:
    assert train_ranks(TEXTS, vocab_size=350) == train_ranks(TEXTS, vocab_size=350)


def test_no_token_joins_words_or_more_than_three_digits() -> None:
    ranks = train_ranks(["fox dog 123456789 fox dog"] * 50, vocab_size=600)
    tokens = {token.decode("latin-1") for token in ranks}
    assert {"fox", " dog"} <= tokens
    assert {"123", "456", "789"} <= tokens
    assert not any(" " in token[1:] or sum(c.isdigit() for c in token) > 3 for token in tokens)


def test_a_ranks_file_has_a_line_for_each_token(tmp_path: Path) -> None:
    write_ranks(tmp_path / "two.tiktoken", {b"a": 0, b"\xff ": 1})
    assert (tmp_path / "two.tiktoken").read_text() == "YQ== 0\n/yA= 1\n"


def test_texts_of_a_document_are_parted_by_an_empty_line(trained: tuple[Tokenizer, Any]) -> None:
    assert BYTES.separator == (10, 10)
    tokenizer, _ = trained
    assert tokenizer.separator == tuple(tokenizer.encode("\n\n"))
    assert tokenizer.decode([*tokenizer.separator]) == "\n\n"


def test_a_tokenizer_is_known_by_the_checksum_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_text("\n".join(lines_of_all_bytes()))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in (str(path), f"{path}#sha256:{sha256}"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.sha256 == sha256
        assert tokenizer.encode("abc") == [97, 98, 99]
    assert BYTES.sha256 == hashlib.sha256(b"bytes").hexdigest() == load_tokenizer(f"bytes#sha256:{BYTES.sha256}").sha256


# What is refused, and how it is said.


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_tokenizer(str(path))
    return Message(error.value)


def lines_of_all_bytes() -> list[str]:
    return [f"{base64.b64encode(bytes([value])).decode()} {value}" for value in range(256)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.tiktoken"
    assert refusal(path) == f'{path}: no such tokenizer file; set data.tokenizer to a tiktoken ranks file or "bytes"'


def test_a_file_of_another_checksum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_text("\n".join(lines_of_all_bytes()))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for other in ("0" * 64, sha256[:10], sha256.upper()):
        with pytest.raises(ValueError) as error:
            load_tokenizer(f"{path}#sha256:{other}")
        assert Message(error.value) == (
            f"{path}: its sha256 is {sha256}, not {other}; copy the file again or mend data.tokenizer"
        )
    with pytest.raises(ValueError, match=r"^bytes: its sha256 is "):
        load_tokenizer(f"bytes#sha256:{sha256}")


@pytest.mark.parametrize("line", ["YQ==", "YQ== 256 257", "Y!== 256", "YQ== many", "<html>"])
def test_a_garbled_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "garbled.tiktoken"
    path.write_text("\n".join([*lines_of_all_bytes()[:2], line]))
    assert refusal(path) == f"{path}, line 3: not base64, blank, rank: {line.encode()!r}"


def test_a_long_garbled_line_is_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "binary.tiktoken"
    path.write_bytes(b"x" * 1000)
    assert refusal(path) == f"{path}, line 1: not base64, blank, rank: {b'x' * 40!r}"


@pytest.mark.parametrize("change", ["gap", "twice", "same token"])
def test_ranks_must_be_consecutive(tmp_path: Path, change: str) -> None:
    extra = {"gap": "YWI= 257", "twice": "YWI= 255", "same token": "YQ== 256"}[change]
    path = tmp_path / "ranks.tiktoken"
    path.write_text("\n".join([*lines_of_all_bytes(), extra]))
    count = 255 if change == "same token" else 256
    assert refusal(path) == f"{path}: ranks are not 0 to {count}, each once; is the file cut off?"


@pytest.mark.parametrize("num_lines", [0, 97, 255])
def test_a_file_without_all_bytes_is_refused(tmp_path: Path, num_lines: int) -> None:
    """It could not encode every text."""
    path = tmp_path / "short.tiktoken"
    path.write_text("\n".join(lines_of_all_bytes()[:num_lines]))
    assert refusal(path).startswith(f"{path}: ")
