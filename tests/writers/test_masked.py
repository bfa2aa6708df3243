from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import Step, generate, generate_steps
from tests.messages import naming

PAINT = ("image", None)
GIVEN = ("image", np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8))
FIX = {"aab": 0.3, "abb": 0.2, "bab": 0.25, "bba": 0.25}


@pytest.fixture(scope="module")
def settings(make_config: Callable[..., Config]) -> Config:
    return make_config(
        *("objective.kind=masked", "objective.canvas_tokens=6", "heads.time_conditioning=none"),
        *("sampling.steps=4", "sampling.time_power=1.0", "sampling.max_rows=64", "sampling.remasking=random"),
    )


def sampled(settings: Config, **changes: Any) -> Config:
    return replace(settings, sampling=replace(settings.sampling, guidance={}, **changes))


class Exact(OneFlow):
    """A model that knows the law of texts of three letters: of each mask it says the posterior, given what is seen."""

    def forward(self, batch: PackedBatch, caches: Sequence[object] = ()) -> Prediction:
        hidden = torch.zeros(len(batch.tokens), self.embed.embedding_dim)
        for number in range(len(batch.text_time)):
            own = (batch.token_sequence == number).nonzero().flatten()
            visible = "".join(chr(token) if token < 128 else "?" for token in batch.tokens[own[1:]].tolist())
            for place, row in enumerate(own[1:].tolist()):
                hidden[row, 0] = posterior(visible, place)
        return Prediction(
            zero_logit=None,
            log_rate=None,
            bag_loss=torch.zeros(()),
            velocity=tuple(torch.zeros_like(pieces.velocity) for pieces in batch.pieces),
            slot_hidden=hidden,
        )

    def bag_logits(self, slot_hidden: Tensor) -> Tensor:
        logits = torch.full((len(slot_hidden), self.embed.num_embeddings), -torch.inf)
        logits[:, ord("a")], logits[:, ord("b")] = slot_hidden[:, 0].log(), (1.0 - slot_hidden[:, 0]).log()
        return logits


@cache
def posterior(visible: str, place: int) -> float:
    """P(a at a place | what is visible)."""
    fits = {x: p for x, p in FIX.items() if all(v in ("?", c) for v, c in zip(visible, x, strict=True))}
    if not fits:  # the text is none of them any more
        return 0.5
    return sum(p for x, p in fits.items() if x[place] == "a") / sum(fits.values())


def law_after(steps: int) -> dict[str, float]:
    """Of texts that are written with exact posteriors and even steps, by enumeration: masks go each by itself."""
    law = {"???": 1.0}
    for step in range(steps):
        chance, after = 1.0 / (steps - step), defaultdict(float)
        for text, prob in law.items():
            ways = []
            for place, letter in enumerate(text):
                is_a = posterior(text, place)
                new = {"?": 1.0 - chance, "a": chance * is_a, "b": chance * (1.0 - is_a)}
                ways.append(new.items() if letter == "?" else [(letter, 1.0)])
            for way in itertools.product(*ways):
                own = prob * np.prod([p for _, p in way])
                if own > 0.0:
                    after["".join(letter for letter, _ in way)] += own
        law = dict(after)
    return law


def distance(law: dict[str, float]) -> float:
    return 0.5 * sum(abs(law.get(x, 0.0) - FIX.get(x, 0.0)) for x in {*law, *FIX})


def test_with_exact_posteriors_unmasking_reaches_the_data() -> None:
    """Total variation to the data by the number of steps: two tokens of one step do not know of each other."""
    assert [distance(law_after(n)) for n in (1, 2, 4, 8, 16, 64)] == pytest.approx(
        [0.3625, 0.1908, 0.0978, 0.0495, 0.0249, 0.0063], abs=1e-4
    )


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_writer_has_the_enumerated_law(
    steps: int, settings: Config, tokenizer: Tokenizer, unchecked: Callable[..., Any]
) -> None:
    config, model = sampled(settings, steps=steps, canvas_tokens=3, top_p=1.0, top_k=512), Exact(settings)
    number = 3000
    with unchecked():
        canvases = [blank_canvas([], tokenizer, config.modality, 1, n) for n in range(number)]
        generate(model, canvases, config, tokenizer)
    found = Counter("".join(map(chr, canvas.tokens[1:].tolist())) for canvas in canvases)
    expected = law_after(steps)
    for text, prob in expected.items():
        assert found[text] / number == pytest.approx(prob, abs=4.5 * (prob * (1 - prob) / number) ** 0.5 + 1e-9)


def test_the_most_probable_tokens_go_first_as_many_as_are_expected(settings: Config, tokenizer: Tokenizer) -> None:
    """Of three masks P(a) is .5, .5 and .3: the last has the surest token, most of the time."""
    config = sampled(settings, steps=3, canvas_tokens=3, top_p=1.0, top_k=512, remasking="low_confidence")
    canvases = [blank_canvas([], tokenizer, config.modality, 1, n) for n in range(200)]
    for step in generate_steps(Exact(settings), canvases, config, tokenizer):
        assert all(len(change.token) == 1 for change in step.changes.values())
        if step.number == 1:
            firsts = Counter(int(np.flatnonzero(canvas.tokens < 128)[0]) for canvas in canvases)
            surest = max(range(3), key=lambda place: abs(posterior("???", place) - 0.5))
            assert firsts.most_common(1)[0][0] == 1 + surest


@pytest.fixture(scope="module")
def model(settings: Config, make_model: Callable[..., OneFlow], tokenizer: Tokenizer) -> OneFlow:
    model = make_model(settings)
    with torch.no_grad():  # so that there are images and ends
        for token in (tokenizer.piece_of["image"], tokenizer.eos):
            model.unembed.weight[token] *= 8.0
    return model.eval()


def write(
    model: OneFlow, config: Config, tokenizer: Tokenizer, prompts: list[Prompt]
) -> tuple[list[Canvas], list[Step]]:
    canvases = [blank_canvas(prompt, tokenizer, config.modality, 3, n) for n, prompt in enumerate(prompts)]
    return canvases, [*generate_steps(model, canvases, config, tokenizer)]


PROMPTS: list[Prompt] = [[], [5, 6], [GIVEN], [5, PAINT], [4, ..., 6, GIVEN, ...]]


@pytest.mark.parametrize("remasking", ["random", "low_confidence"])
@pytest.mark.parametrize("blocks", [0, 3])
def test_every_document_is_finished_and_its_prompt_untouched(
    remasking: str, blocks: int, settings: Config, model: OneFlow, tokenizer: Tokenizer
) -> None:
    config = sampled(settings, remasking=remasking, blocks=blocks, steps=6)
    canvases, steps = write(model, config, tokenizer, PROMPTS * 4)
    assert len(steps) <= 2 * config.sampling.steps
    for canvas, prompt in zip(canvases, PROMPTS * 4, strict=True):
        assert canvas.is_done
        assert tokenizer.mark not in canvas.tokens
        given = [part for part in prompt if isinstance(part, int)]
        assert [
            token
            for token, is_given in zip(canvas.tokens[1:], canvas.is_given[1:], strict=True)
            if is_given and token in given
        ] == given
    assert any(len(canvas.latents("image")) > 1 for canvas in canvases)


def test_what_follows_the_first_eos_of_a_hole_is_taken_out(
    settings: Config, model: OneFlow, tokenizer: Tokenizer
) -> None:
    config = sampled(settings)
    canvases, steps = write(model, config, tokenizer, [[4, ..., 6, ...]] * 40)
    has_ended = 0
    for number, canvas in enumerate(canvases):
        ends = np.flatnonzero(canvas.tokens == tokenizer.eos)
        has_ended += len(ends)
        assert all(end + 1 == len(canvas.tokens) or canvas.is_given[end + 1] for end in ends)
        tokens = [tokenizer.bos, 4, 6]  # what a reader of the changes sees
        for change in (step.changes[number] for step in steps if number in step.changes):
            for place, token in zip(change.place.tolist(), change.token.tolist(), strict=True):
                tokens.insert(place, token)
            tokens = [token for place, token in enumerate(tokens) if place not in change.removed.tolist()]
        assert tokens == canvas.tokens.tolist()
    assert has_ended > 0


def test_blocks_go_from_left_to_right(settings: Config, model: OneFlow, tokenizer: Tokenizer) -> None:
    config = sampled(settings, blocks=3, steps=6, canvas_tokens=6)
    canvases = [blank_canvas([5], tokenizer, config.modality, 3, n) for n in range(10)]
    for step in generate_steps(model, canvases, config, tokenizer):
        if step.number % 2 == 0 and step.number < 6:  # so many steps for each block of two
            for canvas in canvases:
                hidden = np.flatnonzero(canvas.tokens == tokenizer.mark)
                assert hidden.tolist() == list(range(2 + step.number, 8))


def test_a_document_does_not_depend_on_its_company(settings: Config, model: OneFlow, tokenizer: Tokenizer) -> None:
    config = replace(settings, sampling=replace(settings.sampling, guidance={"tokens": 1.5, "image": 2.0}))
    together, _ = write(model, config, tokenizer, PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        alone = blank_canvas(prompt, tokenizer, config.modality, 3, number)
        generate(model, [alone], config, tokenizer)
        assert alone.tokens.tolist() == together[number].tokens.tolist()


def test_a_piece_without_room_becomes_the_end(settings: Config, model: OneFlow, tokenizer: Tokenizer) -> None:
    config = sampled(settings, max_rows=9)
    canvases, _ = write(model, config, tokenizer, [[]] * 20)
    assert max(canvas.num_rows for canvas in canvases) <= 9
    assert any(canvas.hit_cap for canvas in canvases)


def test_a_canvas_needs_a_length_and_room(settings: Config, model: OneFlow, tokenizer: Tokenizer) -> None:
    unknown = replace(settings, objective=replace(settings.objective, canvas_tokens=0))
    with pytest.raises(ValueError, match=naming("sampling.canvas_tokens", 0)):
        write(model, unknown, tokenizer, [[]])
    with pytest.raises(ValueError, match=naming("sampling.max_rows", 5, 7, "sampling.canvas_tokens")):
        write(model, sampled(settings, max_rows=5), tokenizer, [[]])
