from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import run_main
from tests.precompute.making import contents
from tests.tars import samples_of
from tools.paragraphs import make as program
from tools.paragraphs.make import LONGEST, SHORTEST, choose, cut_paragraphs
from tools.shards import write_shards

SENTENCE = "Number {} of all sentences is here to be cut and to be joined."


def section(*texts: str, role: str = "paragraph") -> dict[str, object]:
    return {"segments": [{"type": "text", "text": text, "role": role} for text in texts]}


@pytest.fixture
def sections(tmp_path: Path) -> str:
    """Shards of two splits of sections; the pattern of both."""
    for split in ("train", "val"):
        texts = [" ".join(SENTENCE.format(f"{split}-{a}-{b}") for b in range(5)) for a in range(6)]
        write_shards(tmp_path, f"sections-{split}", [{"json": json.dumps(section(text))} for text in texts])
    return str(tmp_path / "sections-{}-*.tar")


def test_a_paragraph_is_cut_between_sentences_into_as_few_documents_as_hold_it() -> None:
    sentences = [SENTENCE.format(number) for number in range(5)]
    found = list(cut_paragraphs(section(" ".join(sentences))))
    assert found == [" ".join(sentences[:3]), " ".join(sentences[3:])]
    assert all(SHORTEST <= len(text) <= LONGEST for text in found)


def test_short_ones_long_sentences_and_what_is_no_paragraph_are_left_out() -> None:
    whole = SENTENCE.format(1)
    assert list(cut_paragraphs(section("Too short.", whole, "word " * 60))) == [whole]
    assert list(cut_paragraphs(section(whole, role="heading"))) == []
    assert list(
        cut_paragraphs({"segments": [{"type": "image", "image": "0.png"}, {"type": "text", "text": whole}]})
    ) == [whole]


def test_line_ends_and_blanks_in_a_row_become_one_blank() -> None:
    (found,) = cut_paragraphs(section(SENTENCE.format(1).replace(" ", "  \n")))
    assert found == SENTENCE.format(1)


def test_texts_are_chosen_once_each_in_an_order_of_the_seed() -> None:
    texts = [str(number) for number in range(20)] + ["3", "4"]
    assert sorted(choose(texts, 30, 0)) == sorted(set(texts))
    assert choose(texts, 5, 0) == choose(texts, 30, 0)[:5]
    assert choose(texts, 30, 0) != choose(texts, 30, 1)


def test_a_folder_holds_shards_of_both_splits_and_their_vocabulary(sections: str, tmp_path: Path) -> None:
    for folder in ("made", "again"):
        run_main(program, tmp_path / folder, "--text", sections, "--documents", "8")
    made = contents(tmp_path / "made")
    assert sorted(made) == ["paragraphs-heldout-000000.tar", "paragraphs-train-000000.tar", "words.tiktoken"]
    assert contents(tmp_path / "again") == made
    for split, number, name in (("train", 8, "train-"), ("heldout", 8, "val-")):
        samples = samples_of(*(tmp_path / "made").glob(f"paragraphs-{split}-*.tar"))
        assert len(samples) == number
        assert all(f"Number {name}" in files["txt"].decode() for files in samples)
    assert load_tokenizer(str(tmp_path / "made/words.tiktoken")).vocab_size <= 1024 + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "sections.tar"], "--text: sections.tar has no {} where `train` or `val` stands; write it"),
        (["--documents", "0"], "--documents: 0 must lie in [1, inf)"),
    ],
)
def test_what_cannot_be_written_is_refused_with_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        run_main(program, tmp_path / "made", *arguments)
    assert str(error.value) == message
