"""A ranks file as the tokenizer of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer, train_ranks, write_ranks
from oneflow_dist.exporting.tokenizer import find_merge, write_tokenizer

TEXTS = [
    f"the {a} {b} of a {b} wasn't {a}, 12345 élans\n" for a in ("small", "smaller", "café") for b in ("house", "hauses")
]
LINES = ["", " ", "a  b\n\n c", "it's THE'LL", "12 1234 12345678", "naïve 你好 🙂", "<|bos|><|image|>", "\x00\t\u2028x"]
Pair = tuple[Tokenizer, PreTrainedTokenizerFast]


@pytest.fixture(scope="module", params=["bytes", "learnt"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    path = "bytes"
    if request.param == "learnt":
        path = str(folder / "words.tiktoken")
        write_ranks(Path(path), train_ranks(TEXTS, 400))
    own = load_tokenizer(path)
    write_tokenizer(folder, own)
    return own, PreTrainedTokenizerFast.from_pretrained(folder)


def ids(theirs: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


@pytest.mark.parametrize("text", [*LINES, *TEXTS])
def test_a_text_has_the_same_tokens_and_comes_back(pair: Pair, text: str) -> None:
    own, theirs = pair
    assert ids(theirs, text) == own.encode(text)
    assert theirs.decode(ids(theirs, text), clean_up_tokenization_spaces=False) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("thesmalr houé'1\n 你🙂"), max_size=40))
def test_any_text_has_the_same_tokens(pair: Pair, text: str) -> None:
    own, theirs = pair
    assert ids(theirs, text) == own.encode(text)


def test_special_tokens_have_their_ids(pair: Pair) -> None:
    own, theirs = pair
    assert (theirs.bos_token_id, theirs.eos_token_id) == (own.bos, own.eos)
    assert theirs.convert_tokens_to_ids("<|image|>") == own.encoding.encode_single_token("<|image|>")
    assert len(theirs) == own.vocab_size


def test_a_merge_is_the_last_of_those_that_make_a_token() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4, b"ab": 5}
    assert find_merge(b"abc", ranks) == (b"a", b"bc")
    assert find_merge(b"ab", ranks) == (b"a", b"b")
    assert find_merge(b"a", ranks) is None
    assert find_merge(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"abc": 3}) is None  # no earlier token leads to it
