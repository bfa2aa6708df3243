"""Against a stand-in of the classes of lmms-eval 0.7.3; tests/torture/lmms.py has the real one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.asking import Question
from tests.launching import Run
from tests.messages import names, refused

PIXELS = np.random.default_rng(0).integers(256, size=(3, 8, 8)).astype(np.uint8)
DOCUMENTS = [{"text": f"digit {n}?", "picture": Image.fromarray(pixels)} for n, pixels in enumerate(PIXELS)]
MODULE = "oneflow_dist.evaluation.lmms"


class Harness:
    """The base class of its models."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass
class Instance:
    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass
class GenerationResult:
    text: Any
    token_counts: Any = None


ModelManifest = make_dataclass("ModelManifest", ["model_id", ("simple_class_path", Any, None)], frozen=True)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with the harness there."""
    modules: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"Instance": Instance, "GenerationResult": GenerationResult},
        "lmms_eval.api.model": {"lmms": Harness},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module(MODULE)
    del sys.modules[MODULE]


@pytest.fixture
def make(own: Any, unbroken: Run) -> Callable[..., Any]:
    def make_model(**options: Any) -> Any:
        model = own.OneFlowLmms(pretrained=str(unbroken.folder), max_rows=30, batch_size="2", **options)
        model.task_dict = {"digits": {"test": DOCUMENTS}}
        return model

    return make_model


def look(document: dict[str, Any]) -> list[Image.Image]:
    return [document["picture"]]


def request(kind: str, *front: Any, number: int = 0, look: Any = look) -> Instance:
    """As a task makes it: two or three own arguments, then the document's place."""
    context, option, *ask = front
    return Instance(kind, (context, option, look, *ask, number, "digits", "test"), 0)


def question(number: int) -> Question:
    return Question(DOCUMENTS[number]["text"], (DOCUMENTS[number]["picture"],))


def test_without_the_harness_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance"):
        monkeypatch.setitem(sys.modules, name, None)
    assert names(refused(importlib.import_module, MODULE), MODULE, "lmms-eval", "pip install lmms-eval")


def test_the_harness_finds_the_model_by_its_name(own: Any) -> None:
    found = own.manifest()
    assert found.model_id == "oneflow"
    module, _, name = found.simple_class_path.rpartition(".")
    assert getattr(sys.modules[module], name) is own.OneFlowLmms
    assert issubclass(own.OneFlowLmms, Harness)


def test_answers_are_those_of_the_asker_in_the_order_of_the_requests(make: Callable[..., Any]) -> None:
    model = make(seed=4, device="cpu")
    assert (model.asker.group, model.asker.config.sampling.max_rows, model.device.type) == (2, 30, "cpu")
    requests = [request("generate_until", DOCUMENTS[n]["text"], {}, number=n) for n in (2, 0, 1)]
    answers = model.generate_until(requests)
    assert answers == model.asker.answer([question(n) for n in (2, 0, 1)], seed=4)
    assert len(set(answers)) == 3


def test_an_answer_ends_before_what_a_task_says(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr(type(model.asker), "answer", lambda *_, **__: ["one, two. three"])
    for until, expected in [
        ("two", "one, "),
        ([".", ","], "one"),
        ([""], "one, two. three"),
        (None, "one, two. three"),
    ]:
        assert model.generate_until([request("generate_until", "?", {"until": until})]) == [expected]


def test_a_document_without_pictures_is_asked_without(make: Callable[..., Any]) -> None:
    model = make()
    (answer,) = model.generate_until([request("generate_until", "digit?", {}, look=lambda _: None)])
    assert answer == model.asker.answer([Question("digit?")])[0]


def test_the_loss_of_a_choice_is_its_bound(make: Callable[..., Any]) -> None:
    """The harness takes the least."""
    model, choices = make(), ["one", "two", "seven"]
    said = model.loglikelihood([request("loglikelihood", DOCUMENTS[1]["text"], f" {c}", number=1) for c in choices])
    assert [result.text for result in said] == [(model.asker.bound(question(1), choice), False) for choice in choices]
    losses = [result.text[0] for result in said]
    assert losses.index(min(losses)) == model.asker.choose(question(1), choices)


def test_a_target_may_be_made_of_the_document_and_a_choice_stand_alone(make: Callable[..., Any]) -> None:
    model = make()
    made = request("loglikelihood", DOCUMENTS[1]["text"], lambda document: document["text"], number=1)
    alone = Instance("loglikelihood", ("", "one"), 0)
    first, second = model.loglikelihood([made, alone])
    assert first.text[0] == model.asker.bound(question(1), DOCUMENTS[1]["text"])
    assert second.text[0] == model.asker.bound(Question(""), "one")


def test_a_task_asks_on_until_it_is_done(make: Callable[..., Any]) -> None:
    model, heard = make(), []

    def ask(document: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> tuple[Any, ...]:
        heard.append((document["text"], list(previous_output), previous_round_info))
        return look(DOCUMENTS[2]), f"and {round_idx}?", round_idx == 2, previous_output, f"seen {round_idx}"

    (said,) = model.generate_until_multi_round([request("rounds", DOCUMENTS[1]["text"], {}, ask, number=1)])
    first = model.asker.answer([question(1)], seed=0, start=1)
    second = model.asker.answer([Question("and 1?", (DOCUMENTS[2]["picture"],))], seed=1, start=1)
    assert said == [*first, *second]
    assert heard == [(DOCUMENTS[1]["text"], first, None), (DOCUMENTS[1]["text"], said, "seen 1")]


def test_what_is_no_picture_is_refused_with_its_place(make: Callable[..., Any]) -> None:
    message = refused(
        make().generate_until, [request("generate_until", "?", {}, look=lambda _: ["film.mp4"], number=1)]
    )
    assert names(message, "digits", 1, "str")


@pytest.mark.parametrize("size", ["auto", "0", 0, "-1"])
def test_a_batch_size_is_a_number(size: Any, own: Any, tmp_path: Path) -> None:
    assert names(refused(own.OneFlowLmms, str(tmp_path), size), "--batch_size", repr(size))
