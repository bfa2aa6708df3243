from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.canvas import PromptPart, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from tools.counting.editing import EDITS, Edit, draw_documents, is_restored, is_untouched, take_out
from tools.digits.grammar import COUNT_PROMPT, WORDS, read_images


@pytest.fixture
def settings(make_config: Callable[..., Config]) -> Config:
    return make_config("modality.image.patch=[8, 8]")


def documents_of(tokenizer: Tokenizer) -> list[tuple[list[int], list[PromptPart]]]:
    return [(digits, list(parts)) for digits, parts in draw_documents(6, 12, tokenizer, 0)]


def test_documents_count_on_past_nine_and_their_images_show_it(tokenizer: Tokenizer) -> None:
    for digits, parts in draw_documents(40, 30, tokenizer, 0):
        assert all((after - before) % 10 == 1 for before, after in itertools.pairwise(digits))
        images = [part[1] for part in parts if isinstance(part, tuple)]
        assert read_images([image for image in images if image is not None]).tolist() == digits
        tokens = [part for part in parts if isinstance(part, int)]
        assert tokenizer.decode(tokens) == COUNT_PROMPT + "".join(f" {WORDS[digit]}" for digit in digits)


@pytest.mark.parametrize("what", EDITS)
def test_what_is_put_back_is_restored_and_the_rest_untouched(what: str, settings: Config, tokenizer: Tokenizer) -> None:
    num_prompt = len(tokenizer.encode(COUNT_PROMPT))
    for edit in take_out(documents_of(tokenizer), what, num_prompt, np.random.default_rng(0)):
        assert edit.place >= num_prompt
        assert isinstance(edit.parts[edit.place], int) == (what == "word")
        whole = blank_canvas(edit.parts, tokenizer, settings.modality, 0, 0)
        assert is_untouched(edit, whole)
        assert is_restored(edit, whole)
        empty = blank_canvas([part for part in edit.prompt if part is not ...], tokenizer, settings.modality, 0, 0)
        assert is_untouched(edit, empty)
        assert is_restored(edit, empty) == (what == "image in place")


def test_another_word_or_pixel_elsewhere_is_seen(settings: Config, tokenizer: Tokenizer) -> None:
    (digits, parts), *_ = documents_of(tokenizer)
    edit = Edit(digits, parts, len(parts) - 2, parts)
    for place in (0, len(parts) - 1):
        changed, part = list(parts), parts[place]
        if isinstance(part, int):
            changed[place] = part + 1
        else:
            assert isinstance(part, tuple)
            assert part[1] is not None
            changed[place] = ("image", part[1] + np.float32(1e-6))
        assert not is_untouched(edit, blank_canvas(changed, tokenizer, settings.modality, 0, 0))
