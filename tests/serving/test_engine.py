"""The process with the model, without the process: messages in, messages out."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.serving.engine import Cancel, Card, Engine, Told, Write, open_engine, run_engine
from oneflow_dist.serving.orders import Hole, Latent, Limits, Make, Order, Part, Text
from oneflow_dist.serving.pictures import encode_event
from oneflow_dist.serving.settings import TABLES, read_settings
from tests.launching import Run

Maker = Callable[..., OneFlow]


class Talk:
    """An engine, and this end of its pipe."""

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer):
        self.here, there = Pipe()
        self.model, self.config = model, config
        card = Card(config=config, step=1, num_parameters=1, has_turns=False)
        self.engine = Engine(there, model, card, tokenizer)
        self.told: list[Told] = []

    def say(self, *messages: Write | Cancel) -> None:
        for message in messages:
            self.here.send(message)
        self.engine._receive()
        self.hear()

    def step(self) -> None:
        self.told += self.engine._step()[0]

    def finish(self) -> None:
        while self.engine.sampler.writes:
            self.step()

    def hear(self) -> None:
        while self.here.poll():
            self.told += self.here.recv()[0]

    def of(self, key: str) -> list[tuple[str, dict[str, Any]]]:
        return [(name, event) for own, name, event in self.told if own == key]


@pytest.fixture
def talk(make_config: Callable[..., Config], make_model: Maker, tokenizer: Tokenizer) -> Callable[[], Talk]:
    config = make_config("sampling.steps=5", "sampling.max_rows=40", "sampling.guidance={}")
    model = make_model(config, noise=0.05).double()
    return lambda: Talk(model, config, tokenizer)


def order(talk: Talk, *parts: Part, seed: int = 0, follows: Any = "end", **settings: Any) -> Order:
    sampling = replace(talk.config.sampling, **settings)
    return Order(parts=parts, sampling=sampling, seed=seed, follows=follows)


def content(event: dict[str, Any]) -> tuple[Any, ...]:
    """Tokens and pieces of a document's last event."""
    pieces = [{**piece, "latent": {**piece["latent"]}} for own in event["pieces"].values() for piece in own]
    return event["tokens"], encode_event({"pieces": {"all": pieces}})


def test_documents_that_come_at_different_times_are_what_each_is_alone(talk: Callable[[], Talk]) -> None:
    together = talk()
    orders = {
        "a": order(together, Text("one"), seed=1),
        "b": order(together, seed=2, steps=8, temperature=0.7),
        "c": order(together, Text("seven"), Make("image"), seed=3, guidance={"image": 2.0}),
    }
    together.say(Write("a", orders["a"]))
    together.step()
    together.say(Write("b", orders["b"]), Write("c", orders["c"]))
    together.finish()
    for key, own in orders.items():
        alone = talk()
        alone.say(Write(key, own))
        alone.finish()
        assert [name for name, _ in together.of(key)] == [name for name, _ in alone.of(key)] == ["begin", "done"]
        assert content(together.of(key)[-1][1]) == content(alone.of(key)[-1][1])


def test_what_cannot_be_written_is_refused_and_others_go_on(talk: Callable[[], Talk]) -> None:
    own = talk()
    own.say(Write("bad", order(own, Make("video"))), Write("good", order(own)))
    own.finish()
    assert [name for name, _ in own.of("bad")] == ["refused"]
    assert "video" in own.of("bad")[0][1]["message"]
    assert own.of("good")[-1][0] == "done"


def test_a_cancelled_document_is_told_nothing_more(talk: Callable[[], Talk]) -> None:
    own = talk()
    own.say(Write("a", order(own, follows="steps")), Write("b", order(own, seed=1)))
    own.step()
    count = len(own.of("a"))
    own.say(Cancel("a"), Cancel("nobody"))
    own.finish()
    assert len(own.of("a")) == count == 2  # its begin and a step
    assert own.of("b")[-1][0] == "done"


def test_who_follows_is_told_every_step_and_who_does_not_only_the_end(talk: Callable[[], Talk]) -> None:
    own = talk()
    own.say(Write("a", order(own, follows="steps")), Write("b", order(own)))
    own.finish()
    names = [name for name, _ in own.of("a")]
    assert (names[0], names[-1]) == ("begin", "done")
    assert names.count("step") == own.of("a")[-1][1]["steps"]
    assert [name for name, _ in own.of("b")] == ["begin", "done"]


EXTREMES: list[dict[str, Any]] = [
    *({"guidance": {name: weight}} for name in ("gate", "rate", "tokens", "image") for weight in (-100.0, 100.0)),
    {"guidance": {"image": 100.0}, "solver": "heun"},
    {"guidance": {"image": -100.0}, "weak_model": "entropy", "weak_temperature": 0.01},
    {"guidance": {"image": 100.0}, "weak_model": "entropy", "weak_temperature": 1e308},
    {"guidance": {"tokens": 100.0}, "temperature": 1e-30},
    {"guidance": {"tokens": -100.0}, "temperature": 1e-30, "top_p": 1e-300},
    {"temperature": 1e308},
    {"top_p": 1e-320, "top_k": 10**18},
    {"churn": 1e308},
    {"shift": 1e300},
    {"shift": 1e-300},
    {"time_power": 1e308},
    {"corrections": 16, "corrected_from": 0.999999},
    {"piece_steps": {"image": 1}, "steps": 1},
]


def test_the_furthest_settings_that_are_allowed_end_neither_the_engine_nor_others(talk: Callable[[], Talk]) -> None:
    """All are in one forward, which would be lost to all."""
    own, limits = talk(), Limits()
    for number, extreme in enumerate(EXTREMES):
        tables = {f"{name}.{key}": value for name in TABLES for key, value in extreme.get(name, {}).items()}
        said = {name: value for name, value in extreme.items() if name not in TABLES} | tables
        sampling = read_settings({"steps": 5, **said}, own.config, limits)
        parts = (Text("seven"), Make("image"), Hole())
        own.say(Write(f"{number}", Order(parts=parts, sampling=sampling, seed=number)))
    far = np.full((1, 8, 8), limits.latent, dtype=np.float32)
    own.say(Write("far", order(own, Latent("image", far), Hole(), Latent("image", -far))))
    own.say(Write("good", order(own, Text("seven"))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that become infinite on the way to 0 or 1
        own.finish()
    keys = ("good", "far", *map(str, range(len(EXTREMES))))
    assert {key: own.of(key)[-1][0] for key in keys} == dict.fromkeys(keys, "done")
    alone = talk()
    alone.say(Write("good", order(alone, Text("seven"))))
    alone.finish()
    assert content(own.of("good")[-1][1]) == content(alone.of("good")[-1][1])


def test_numbers_that_are_not_finite_end_all_documents_of_the_step_and_no_later_one(talk: Callable[[], Talk]) -> None:
    own = talk()
    own.say(Write("a", order(own)), Write("b", order(own, seed=1)))
    weight = own.model.embed.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(np.nan)
    own.step()
    with torch.no_grad():
        weight.copy_(kept)
    assert [own.of(key)[-1][0] for key in "ab"] == ["failed", "failed"]
    assert not own.engine.sampler.writes
    own.say(Write("c", order(own)))
    own.finish()
    assert own.of("c")[-1][0] == "done"


def test_an_engine_says_what_its_model_is_and_ends_when_it_is_told_or_left(unbroken: Run) -> None:
    for leave in (lambda here: here.send(None), lambda here: here.close()):
        here, there = Pipe()
        engine = open_engine(there, str(unbroken.folder))
        assert engine.card.step == 20
        assert not engine.card.has_turns
        assert next(engine.sampler._model.parameters()).dtype == torch.float64  # on a CPU
        thread = threading.Thread(target=_run_until_left, args=(engine,))
        thread.start()
        leave(here)
        thread.join(timeout=10.0)
        assert not thread.is_alive()
        there.close()
        here.close()


def _run_until_left(engine: Engine) -> None:
    try:
        engine.run()
    except (EOFError, ConnectionError):
        return


def test_a_folder_without_a_checkpoint_is_told_in_one_line(tmp_path: Any) -> None:
    here, there = Pipe()
    thread = threading.Thread(target=_run, args=(there, str(tmp_path)))
    thread.start()
    said = here.recv()
    thread.join()
    assert isinstance(said, str)
    assert str(tmp_path) in said
    for end in (here, there):
        end.close()


def _run(there: Any, run: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)  # of the main thread alone
        patch.setattr("torch.set_num_threads", lambda _: None)
        run_engine(there, run, 0, 1)
