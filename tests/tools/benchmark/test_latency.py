"""Documents of forced length: what is written is what the script says, and what it takes is what the plan counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config, write_config
from oneflow_dist.data.tokenizer import Tokenizer
from tests.launching import Launcher
from tests.messages import naming
from tools.benchmark import latency
from tools.benchmark.latency import FORWARDS, MOST_ANEW, ROWS, SECONDS, Side, measure, shapes_of, sides_of, spread_over
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION, WAYS, Shape, Way, case_of, passes_of

CPU = torch.device("cpu")
STEPS = 3


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config("model.prompt_sees=prompt", "model.num_layers=1")


@pytest.fixture(scope="module")
def sides(small: Config) -> dict[Way, Side]:
    return {side.way: side for side in sides_of(small, STEPS, CPU)}


def shape_of(prompt: int, text: int, images: int) -> Shape:
    return Shape(prompt=prompt, text=text, images=images, image_rows=4, steps=STEPS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [shape_of(5, 7, 0), shape_of(0, 7, 1), shape_of(3, 2, 3)], ids=str)
@pytest.mark.parametrize("documents", [1, 2])
def test_forwards_and_rows_are_those_of_the_plan(
    sides: dict[Way, Side], way: Way, shape: Shape, documents: int
) -> None:
    passes = [*passes_of(way, shape)]
    seconds, forwards, rows = sides[way].write(shape, documents)
    assert (forwards, rows) == (len(passes), documents * sum(own.rows for own in passes))
    assert seconds > 0.0


@pytest.mark.parametrize("images", [0, 2])
def test_pairs_patches_and_drawn_tokens_are_those_of_the_plan(sides: dict[Way, Side], images: int) -> None:
    """Of all rows anew, where a pack holds everything that is computed."""
    shape, side = shape_of(2, 5, images), sides[ANEW]
    found = []
    counting = side.model.register_forward_pre_hook(lambda _, args: found.append(args[0].counts))
    try:
        side.write(shape, 1)
    finally:
        counting.remove()
    passes = [*passes_of(ANEW, shape)]
    assert [counts.attention_pairs for counts in found] == [own.pairs for own in passes]
    assert [counts.patches[0] for counts in found] == [own.patches for own in passes]
    assert sum(own.drawn for own in passes) == 5 + images + 1


@pytest.mark.parametrize("way", WAYS)
def test_documents_hold_what_was_asked_for(
    sides: dict[Way, Side], way: Way, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvases: list[Canvas] = []
    make = Side._canvas

    def keep(self: Side, shape: Shape, index: int) -> Canvas:
        canvases.append(make(self, shape, index))
        return canvases[-1]

    monkeypatch.setattr(Side, "_canvas", keep)
    sides[way].write(shape_of(4, 9, 2), 2)
    image = tokenizer.piece_of["image"]
    for canvas in canvases:
        written = canvas.tokens[5:]
        assert canvas.is_done
        assert ((written == image).sum(), (written < tokenizer.bos).sum()) == (2, 9)
        assert (written == tokenizer.eos).sum() == (way != INSERTION)
        assert canvas.making["image"].pieces.time.tolist() == pytest.approx([1.0, 1.0])
    if way != INSERTION:
        assert np.flatnonzero(canvases[0].tokens == image).tolist() == [5 + 3, 5 + 7]  # thirds of the text


def test_ways_take_turns_and_long_texts_have_no_turn_without_cache(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[Way, int]] = []

    def write(self: Side, shape: Shape, count: int) -> tuple[float, int, int]:
        turns.append((self.way, shape.text))
        return 1.0, 2, 3 * count

    monkeypatch.setattr(Side, "write", write)
    shapes = [shape_of(0, text, 0) for text in (MOST_ANEW, MOST_ANEW + 1)]
    series = measure(small, shapes, [2], 2, CPU).series
    of_short, of_long = [(way, MOST_ANEW) for way in WAYS], [(way, MOST_ANEW + 1) for way in (INSERTION, CACHED)]
    assert turns[3:] == of_short * 2 + of_long * 2  # the first ones warm up
    name = case_of(CACHED, shapes[0], 2)
    assert (series[SECONDS][name], series[FORWARDS][name], series[ROWS][name]) == ([1.0, 1.0], [2.0], [3.0])


@pytest.mark.parametrize(("count", "slots"), [(0, []), (2, [3, 5]), (3, [3, 5, 7]), (6, [3, 3, 5, 5, 7, 7])])
def test_tokens_are_spread_over_slots(count: int, slots: list[int]) -> None:
    assert spread_over(np.array([3, 5, 7]), count).tolist() == slots


def test_images_that_cannot_be_generated_are_refused(small: Config) -> None:
    text = replace(small, modality={})
    assert [shape.image_rows for shape in shapes_of(text, [5, 6], [0], 1, 2)] == [0, 0]
    with pytest.raises(ValueError, match=naming("--images", "0")):
        shapes_of(text, [5], [0, 1], 1, 2)


def test_a_vocabulary_without_room_for_the_mark_is_refused(small: Config, tokenizer: Tokenizer) -> None:
    full = replace(small, model=replace(small.model, vocab_size=tokenizer.vocab_size))
    with pytest.raises(ValueError, match=naming("model.vocab_size", str(tokenizer.vocab_size))):
        sides_of(full, STEPS, CPU)


def test_the_command_measures_and_plans(launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path) -> None:
    config, out = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(write_config(make_config()))
    lengths = ["--texts", "3", "6", "--images", "0", "1", "--documents", "1", "--steps=2", "--prompt=0", "--rounds=1"]
    planned = ["--plan", "configs/oneflow_1b.toml", "--gpu", "h200", f"--output={out}"]
    end = launcher.run("-m", "tools.benchmark", "latency", config, *lengths, *planned)
    assert end.code == 0, end.stderr
    series = json.loads((out / "result.json").read_text())["measured"]["series"]
    cases = {case_of(way, shape_of(0, text, images), 1) for way in WAYS for text in (3, 6) for images in (0, 1)}
    assert set(series[latency.SECONDS]) == cases == set(series["seconds by plan, h200-141gb"])
    text_alone = [case for case in cases if case.startswith("0 ")]  # images of the plan's config have other rows
    for what in (FORWARDS, ROWS):
        by_plan = series[f"{what} by plan, h200-141gb"]
        assert [series[what][case] for case in text_alone] == [by_plan[case] for case in text_alone]
    assert (out / "plot.png").exists()
