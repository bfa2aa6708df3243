from __future__ import annotations

from typing import Any

import pytest

from oneflow_dist.prepare.captions import (
    merge_captions,
    rank_of,
    read_caption,
    take_captions,
    words_of_file,
    words_of_folder,
)


@pytest.mark.parametrize(
    "name", ["caption", "Caption", "text", "description", "title", "prompt", "caption_2", "Alt Text"]
)
def test_names_of_captions(name: str) -> None:
    assert rank_of(name) is not None


@pytest.mark.parametrize("name", ["file_name", "label", "captioned", "id", ""])
def test_other_names(name: str) -> None:
    assert rank_of(name) is None


@pytest.mark.parametrize(
    ("fields", "captions", "rest"),
    [
        ({"caption": " an owl ", "width": 3}, ["an owl"], {"width": 3}),
        ({"title": "Owl", "caption": "an owl"}, ["an owl"], {"title": "Owl"}),
        ({"caption": ["a", "b", "a", " "]}, ["a", "b"], {}),
        ({"caption_1": "a", "caption_2": "b"}, ["a", "b"], {}),
        ({"caption": "", "title": "Owl"}, ["Owl"], {"caption": ""}),
        ({"species": "owl", "width": 3}, ["owl"], {"width": 3}),
        ({"species": "owl", "place": "wood"}, [], {"species": "owl", "place": "wood"}),
        ({"caption": 3}, [], {"caption": 3}),
        ({"caption": "an \ud83e owl"}, ["an \ufffd owl"], {}),
    ],
)
def test_captions_among_fields(fields: dict[str, Any], captions: list[str], rest: dict[str, Any]) -> None:
    assert take_captions(fields) == (tuple(captions), rest)


def test_a_text_of_its_own_comes_before_the_json() -> None:
    assert merge_captions(["an owl"], {"caption": "an owl", "title": "Owl"}) == (("an owl",), {"title": "Owl"})
    assert merge_captions([], {"caption": "an owl", "title": "Owl"}) == (("an owl",), {"title": "Owl"})
    assert merge_captions([], "an owl") == (("an owl",), {})
    assert merge_captions(["an owl"], None) == (("an owl",), {})


def test_all_lines_are_one_caption_but_translations() -> None:
    assert read_caption("An owl.\nIt sleeps.\n") == ("An owl.\nIt sleeps.", 0)
    tux_paint = "An owl.\nde.utf8=Eine Eule.\npt_br.utf8=Uma coruja.\nca@valencia.utf8=Un mussol.\n"
    assert read_caption(tux_paint) == ("An owl.", 3)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("birds/red_bird-02.png", "red bird"),
        ("red%20bird.png", "red bird"),
        ("a.red.bird (3).png", "a red bird"),
        ("3 owls.png", "3 owls"),
        ("0001.png", ""),
        ("IMG_2041.jpg", ""),
        ("DSC-1 (2).jpg", ""),
    ],
)
def test_the_name_of_a_file_as_caption(file: str, words: str) -> None:
    assert words_of_file(file) == words


@pytest.mark.parametrize(
    ("file", "words"), [("train/red_bird/1.png", "red bird"), ("red_bird/train/1.png", "red bird"), ("1.png", "")]
)
def test_the_name_of_a_folder_as_caption(file: str, words: str) -> None:
    assert words_of_folder(file) == words
