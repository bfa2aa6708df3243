"""The digest and the picture of a packed batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import pack
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import noise_at
from oneflow_dist.inspection import COLORS, FAINT, INK, _boxes, digest, draw_pack, spell_pack
from tests.noising import noising


@pytest.fixture
def batch(make_noisy: Callable[..., NoisySample]) -> PackedBatch:
    rng = np.random.default_rng(0)
    return pack([make_noisy(rng), make_noisy(rng, num_images=2)], capacity=None)


def swap(batch: PackedBatch, old: Tensor, new: Tensor) -> PackedBatch:
    """The batch with another tensor in the place of one."""
    return batch.map(lambda value: new if value is old else value)


def test_every_array_of_a_pack_counts(batch: PackedBatch) -> None:
    whole = digest([batch])
    assert digest([batch]) == whole
    assert digest([batch, batch]) != whole
    for number, tensor in enumerate(batch.tensors()):
        other = tensor.clone()
        other.view(-1)[0] += 1
        assert digest([swap(batch, tensor, other)]) != whole, number


def test_samples_are_drawn_word_by_word_in_the_colour_of_their_state(
    make_sample: Callable[..., Sample], tokenizer: Tokenizer, config: Config
) -> None:
    words = [tokenizer.encode(f" {word}")[0] for word in ("one", "two", "three", "four")]
    assert [tokenizer.decode([word]) for word in words] == [" one", " two", " three", " four"]
    one, two, three, four = words
    sample = make_sample([tokenizer.bos, one, two, None, three, four], num_prompt=2, is_interleaved=False)
    image_token = dataclasses.replace(
        sample, tokens=np.where(sample.tokens == 258, tokenizer.piece_of["image"], sample.tokens)
    )
    for text_time, expected in ((1.0, INK), (0.0, COLORS["missing"])):
        noisy = noise_at(image_token, text_time, [np.array([0.5])], noising(), np.random.default_rng(0))
        boxes = _boxes(pack([noisy], capacity=None), 0, tokenizer, config)
        drawn = [box for box in boxes if isinstance(box, tuple)]
        assert ("one", FAINT) in drawn
        assert [color for word, color in drawn if word in ("two", "three", "four")] == [expected] * 3
        assert ("t=0.50", FAINT) in drawn
        assert len(boxes) - len(drawn) == 2  # the image as it is, and complete


def test_prompt_targets_and_roles_are_told_apart(
    make_sample: Callable[..., Sample], tokenizer: Tokenizer, config: Config
) -> None:
    one, two, three = (tokenizer.encode(f" {word}")[0] for word in ("one", "two", "three"))
    user, assistant = (tokenizer.role_of[role] for role in ("user", "assistant"))
    made = make_sample([tokenizer.bos, user, one, None, assistant, two, three, None], num_prompt=5)
    image = tokenizer.piece_of["image"]
    sample = dataclasses.replace(made, tokens=np.where(made.tokens == 258, image, made.tokens))
    given = "<|user|> one<|image|><|assistant|>"
    for text_time, age, expected in ((1.0, 1.0, "[ two three][<|image|>]"), (0.0, -1.0, "{ two three<|image|>}")):
        noisy = noise_at(sample, text_time, [np.array([1.0, age])], noising(), np.random.default_rng(0))
        batch = pack([noisy], capacity=None)
        assert spell_pack(batch, tokenizer, config) == [f"{noisy.key}: {given + expected!r}"]
        drawn = dict(box for box in _boxes(batch, 0, tokenizer, config) if isinstance(box, tuple))
        assert (drawn["<|user|>"], drawn["one"], drawn["<|assistant|>"]) == (COLORS["role"], FAINT, COLORS["role"])
        assert drawn["two"] == COLORS["there" if text_time else "missing"]


def test_a_page_names_the_samples_that_it_leaves_out(batch: PackedBatch, tokenizer: Tokenizer, config: Config) -> None:
    whole, part = (draw_pack(batch, tokenizer, config, num_samples=n) for n in (2, 1))
    assert whole.width == part.width
    assert whole.height > part.height
