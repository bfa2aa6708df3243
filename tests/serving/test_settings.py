"""Settings as users see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oneflow_dist.config import Config
from oneflow_dist.serving.orders import Limits
from oneflow_dist.serving.settings import describe_settings, flat, read_settings
from tests.messages import naming


def test_what_is_described_can_be_sent_back(config: Config) -> None:
    described = describe_settings(config, Limits())
    defaults = {name: own["default"] for name, own in described.items()}
    read = read_settings(defaults, config, Limits())
    assert flat(read) | defaults == flat(read)
    assert read_settings(flat(read), config, Limits()) == read
    assert read_settings({}, config, Limits()) == config.sampling


@pytest.mark.parametrize("limits", [Limits(), Limits(max_rows=10)], ids=["as they are", "few rows"])
def test_defaults_lie_in_their_ranges_and_choices(limits: Limits, config: Config) -> None:
    for name, own in describe_settings(config, limits).items():
        if own["type"] == "string":
            assert own["default"] in own["choices"], name
            continue
        least, most = own["minimum"], own["maximum"]
        assert least is None or least <= own["default"], name
        assert most is None or own["default"] <= most, name


def test_tables_are_set_entry_by_entry(make_config: Callable[..., Config]) -> None:
    config = make_config("sampling.guidance={image=3.0, tokens=2.0}")
    read = read_settings({"guidance.image": 5, "piece_steps.image": 7}, config, Limits())
    assert read.guidance == {"image": 5, "tokens": 2.0}
    assert read.steps_of("image") == 7


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stepz": 3}, ("settings.stepz", "steps")),
        ({"steps": 0}, ("settings.steps", 0)),
        ({"steps": 1.5}, ("settings.steps", 1.5)),
        ({"steps": "many"}, ("settings.steps", "many")),
        ({"temperature": -1.0}, ("settings.temperature", -1.0)),
        ({"solver": "magic"}, ("settings.solver", "magic", "heun")),
        ({"guidance.video": 2.0}, ("settings.guidance.video", "image")),
        ({"guidance_from": 0.9, "guidance_until": 0.1}, ("settings.guidance_from", 0.9)),
        ({"prompts": "x"}, ("settings.prompts",)),
        ({"every_steps": 1}, ("settings.every_steps",)),
        ({"corrections": 17}, ("settings.corrections", 17, 16)),
        ({"max_rows": 10**9}, ("settings.max_rows", 10**9)),
        ({"piece_steps.image": 5000}, ("settings.piece_steps.image", 5000, 1000)),
        ({"guidance.tokens": 1e308}, ("settings.guidance.tokens", 1e308, 100.0)),
        ({"guidance.image": -100.5}, ("settings.guidance.image", -100.5, -100.0)),
        ({"weak_temperature": 1e-300}, ("settings.weak_temperature", 1e-300, 0.01)),
        ({"guidance.image": float("nan")}, ("settings.guidance.image", "nan")),
    ],
    ids=str,
)
def test_what_cannot_be_is_named_with_its_value(values: dict[str, Any], named: tuple[Any, ...], config: Config) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        read_settings(values, config, Limits())


def test_ranges_that_are_told_are_those_that_are_allowed(config: Config) -> None:
    for name, own in describe_settings(config, Limits()).items():
        if own["type"] == "string" or name in ("canvas_tokens", "clock_share"):  # which this objective has no use for
            continue
        exact = {"max_rows": config.sampling.max_rows}.get(name, own["maximum"])
        if own["type"] == "integer" and exact is not None:
            assert own["maximum"] == exact
            read_settings({name: int(exact)}, config, Limits())
            with pytest.raises(ValueError, match=naming(int(exact) + 1)):
                read_settings({name: int(exact) + 1}, config, Limits())
        if name.startswith("guidance."):
            for end in (own["minimum"], own["maximum"]):
                read_settings({name: end}, config, Limits())


def test_a_config_may_go_further_than_a_server_allows_others(make_config: Callable[..., Config]) -> None:
    config = make_config("sampling.guidance={image=150.0}", "sampling.steps=2000", "sampling.weak_temperature=0.001")
    assert read_settings({}, config, Limits()) == config.sampling
    assert read_settings({"guidance.tokens": 150}, config, Limits()).guidance["tokens"] == 150


def test_a_server_may_allow_fewer_rows_than_the_config_without_being_asked_for_them(config: Config) -> None:
    fewer = config.sampling.max_rows - 1
    assert read_settings({}, config, Limits(max_rows=fewer)).max_rows == fewer
    with pytest.raises(ValueError, match=naming("settings.max_rows", fewer + 1, fewer)):
        read_settings({"max_rows": fewer + 1}, config, Limits(max_rows=fewer))


def test_a_server_may_allow_more_rows_than_the_config(config: Config) -> None:
    most = config.sampling.max_rows + 10
    assert read_settings({"max_rows": most}, config, Limits(max_rows=most)).max_rows == most
    assert describe_settings(config, Limits(max_rows=most))["max_rows"]["maximum"] == most
