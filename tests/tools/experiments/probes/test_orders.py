from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.oneflow import OneFlow
from tools.boards.grammar import draw_board
from tools.digits.grammar import load_split
from tools.experiments.probes import orders
from tools.experiments.probes.orders import ORDERS, WORLDS, compare, find_world, finish_canvases, measure
from tools.experiments.reading import Experiment, Probe
from tools.experiments.rows import Subject

ASKED = Experiment(title="", question="", method="", finding="", scale={}, arm={}, probe={}, figure={}, claim={})
SUBJECT = Subject(experiment=ASKED, arm="all", seed=1, folder=Path("run"))
FIGURES = {"agreement", "valid_text", "valid_image", "forwards"}


def probe_of(world: str, *values: float) -> Probe:
    return Probe(kind="orders", title="", documents=3, kinds=(world,), values=values)


@pytest.fixture
def model(config: Config, make_model: Callable[..., OneFlow], monkeypatch: pytest.MonkeyPatch) -> OneFlow:
    """An untrained model of digits, in place of the run's."""
    made = make_model(config, noise=0.02).eval()
    monkeypatch.setattr(orders, "load_model", lambda folder: (made, config))
    return made


@pytest.mark.parametrize("forwards", [2, 6])
def test_each_order_takes_the_forwards_that_were_asked_for(forwards: int, model: OneFlow) -> None:
    rows = list(measure(SUBJECT, probe_of("digits", forwards)))
    assert {(row.way, row.figure) for row in rows} == {(way, figure) for way in ORDERS for figure in FIGURES}
    assert {row.value for row in rows if row.figure == "forwards"} == {float(forwards)}
    assert all(row.x == forwards for row in rows)
    assert all(0.0 <= row.value <= 1.0 for row in rows if row.figure != "forwards")


def test_what_is_made_second_is_made_of_what_was_made_first(
    model: OneFlow, config: Config, tokenizer: Tokenizer
) -> None:
    asked: list[tuple[int, int]] = []

    def finish(prompts: list[list[object]], steps: int, first: int) -> list[object]:
        asked.append((steps, first))
        return finish_canvases(model, config, 5, prompts, steps, first)

    written = ORDERS["text first"](finish, 3, 4)
    painted = ORDERS["image first"](finish, 3, 4)
    assert asked == [(2, 0), (2, 3), (2, 0), (2, 3)]
    for text, whole in zip(written[:3], written[3:], strict=True):
        assert np.array_equal(whole.tokens[:-1], text.tokens)
        assert whole.tokens[-1] == tokenizer.piece_of["image"]
    for picture, whole in zip(painted[:3], painted[3:], strict=True):
        assert np.array_equal(whole.latents("image")[0], picture.latents("image")[0])
        assert len(whole.tokens) >= len(picture.tokens)


def test_another_seed_of_the_run_draws_other_documents(model: OneFlow, config: Config) -> None:
    pictures = [
        finish_canvases(model, config, seed, [[("image", None)]], 2, 0)[0].latents("image")[0] for seed in (1, 2)
    ]
    assert not np.array_equal(*pictures)


def test_documents_are_unguided_whatever_the_config_says(model: OneFlow, config: Config) -> None:
    sampling = dataclasses.replace(config.sampling, guidance={"image": 5.0}, corrections=2)
    guided = dataclasses.replace(config, sampling=sampling)
    first, second = (finish_canvases(model, own, 1, [[..., ("image", None)]], 3, 0)[0] for own in (config, guided))
    assert np.array_equal(first.latents("image")[0], second.latents("image")[0])
    assert second.num_steps == 3


def test_boards_are_compared_attribute_by_attribute() -> None:
    rng = np.random.default_rng(0)
    labels = [("two", "red", "fish"), ("one", "blue", "mouse"), ("three", "green", "rooster")]
    pictures = [pixels_to_latent(draw_board(label, rng)) for label in labels]
    noise = rng.normal(size=pictures[0].shape).astype(np.float32)
    texts = ["two red fish", "one blue fish", "three green roosters", "one red fishes"]
    found = compare(texts, [*pictures, noise], WORLDS["boards"]())
    assert found["agreement"] == 2 / 4
    assert (found["valid_text"], found["valid_image"]) == (3 / 4, 3 / 4)
    assert (found["count"], found["colour"], found["noun"]) == (3 / 4, 3 / 4, 2 / 4)


def test_digits_are_compared_as_a_whole_and_nearly_all_held_out_ones_are_valid() -> None:
    images, labels = load_split("heldout")
    pictures = [pixels_to_latent(image) for image in images]
    world = WORLDS["digits"]()
    seen = world.read_pictures(pictures)
    assert np.mean([is_valid for _, is_valid in seen]) == pytest.approx(0.99, abs=0.005)
    words = ("a handwritten seven", "a handwritten one", "seven")
    seven = pictures[list(labels).index(7)]
    found = compare(words, [seven] * 3, world)
    assert found == {"agreement": 1 / 3, "valid_text": 2 / 3, "valid_image": 1.0}


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (probe_of("fish", 8), "probe.kinds: 'fish' is no world of orders; known are boards, digits"),
        (Probe(kind="orders", title=""), "probe.kinds: '' is no world of orders; known are boards, digits"),
        (probe_of("boards", 7), "probe.values: 7: forwards are shared by two halves; name an even number"),
        (probe_of("boards", 0), "probe.values: 0: forwards are shared by two halves; name an even number"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_one_line(probe: Probe, message: str) -> None:
    with pytest.raises(ValueError) as error:
        list(measure(SUBJECT, probe))
    assert str(error.value) == message


def test_every_world_is_found_by_its_name() -> None:
    assert [find_world(probe_of(name)).attributes for name in WORLDS] == [("count", "colour", "noun"), ()]
