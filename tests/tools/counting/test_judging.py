from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oneflow_dist.canvas import Canvas, PromptPart, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.oneflow import OneFlow
from tools.counting.editing import draw_documents
from tools.counting.judging import BLOCK_PROMPT, Written, is_right, judge_written
from tools.digits.grammar import COUNT_PROMPT
from tools.digits.judging import Writer, judge_interleaved


@pytest.fixture
def writer(make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tokenizer: Tokenizer) -> Writer:
    config = make_config("modality.image.patch=[8, 8]")
    return Writer(make_model(config), config, tokenizer)


def canvas_of(parts: list[PromptPart], writer: Writer) -> Canvas:
    return blank_canvas(parts, writer.tokenizer, writer.config.modality, 0, 0)


@pytest.mark.parametrize("prompt", [COUNT_PROMPT, BLOCK_PROMPT])
def test_right_documents_count_and_show_what_they_say(writer: Writer, prompt: str) -> None:
    own = writer.tokenizer.encode(prompt)
    num_prompt = len(writer.tokenizer.encode(COUNT_PROMPT))
    for digits, document in draw_documents(12, 30, writer.tokenizer, 1):
        parts = [*own, *document[num_prompt:]]
        assert is_right(canvas_of(parts, writer), prompt, writer.tokenizer)
        assert is_right(canvas_of([*parts, writer.tokenizer.eos], writer), prompt, writer.tokenizer)
        assert not is_right(canvas_of(parts[:-1], writer), prompt, writer.tokenizer)
        assert not is_right(canvas_of(parts, writer), "another prompt", writer.tokenizer)
        shorter = judge_interleaved([canvas_of(parts, writer)], writer.tokenizer, prompt, longest=len(digits) - 1)
        assert shorter["documents_right"] == shorter["valid_text"] == 0.0
        swapped = [*parts[:-1], ("image", -np.ones((1, 8, 8), dtype=np.float32))]
        if digits[-1] != 1:  # what the judge sees in nothing
            assert not is_right(canvas_of(swapped, writer), prompt, writer.tokenizer)


def test_lengths_are_compared_with_all_alike(writer: Writer) -> None:
    """Of documents of one and two images where one to four are expected: half of the mass is elsewhere."""
    documents = [parts for digits, parts in draw_documents(400, 30, writer.tokenizer, 1) if len(digits) in (1, 2)]
    ones = [parts for parts in documents if len(parts) < len(documents[0]) or len(parts) == min(map(len, documents))]
    twos = [parts for parts in documents if len(parts) == max(map(len, documents))]
    chosen = [list(ones[0]), list(twos[0])]
    written = Written([canvas_of(parts, writer) for parts in chosen], 1.0, 60)
    report = judge_written(written, COUNT_PROMPT, 4, writer.tokenizer)
    assert report["off_uniform"] == 0.5
    assert report["images"] == 1.5
    assert report["rows_per_image"] == 20.0
    assert report["by_length"] == [0, 1, 1, 0, 0, 0]
    assert report["right"] == 1.0
