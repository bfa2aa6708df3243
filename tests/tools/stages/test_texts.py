from __future__ import annotations

from typing import Any

from tools.stages.texts import LIMIT, ask_of, cut_documents


def section(*texts: tuple[str, str]) -> dict[str, Any]:
    """A section of texts with their roles, and a figure."""
    parts = [{"type": "text", "role": role, "text": text} for role, text in texts]
    return {"segments": [*parts, {"type": "image", "image": "0.jpg"}]}


def sentences(number: int) -> str:
    return " ".join(f"This is sentence {place} of a long paragraph." for place in range(number))


def test_paragraphs_fill_documents_and_none_is_cut() -> None:
    texts = [f"{number} {'word ' * 40}".strip() for number in range(20)]
    documents = cut_documents(section(*(("paragraph", text) for text in texts)))
    assert [part for document in documents for part in document.split("\n\n")] == texts
    assert all(LIMIT // 2 < len(document) <= LIMIT for document in documents[:-1])


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    documents = cut_documents(section(("paragraph", sentences(60))))
    assert len(documents) > 1
    assert all(document.endswith(".") and len(document) <= LIMIT for document in documents)
    assert " ".join(documents) == sentences(60)


def test_a_sentence_is_never_cut() -> None:
    assert cut_documents(section(("paragraph", "word " * 500 + "end"))) == ["word " * 500 + "end"]


def test_documents_are_prose() -> None:
    """No tables, no exercises, no glossary."""
    fields = section(("title", "Cells"), ("table", "1 | 2"), ("glossary", "cell: the smallest part"), ("answer", "B"))
    assert cut_documents(fields) == ["Cells"]


def test_a_glossary_is_questions_and_short_paragraphs_go_on() -> None:
    fields = section(
        ("glossary", "cell: the smallest part of what lives\nno term here"),
        ("paragraph", "One. Two. Three."),
        ("paragraph", "No more than one sentence."),
        ("paragraph", sentences(60)),
    )
    assert list(ask_of(fields)) == [
        ("what is cell?", "the smallest part of what lives"),
        ("continue: One.", "Two. Three."),
    ]


def test_a_text_without_a_role_is_a_paragraph() -> None:
    assert cut_documents({"segments": [{"type": "text", "text": "Alone."}]}) == ["Alone."]
