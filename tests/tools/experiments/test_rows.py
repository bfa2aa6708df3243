from __future__ import annotations

from collections.abc import Callable

import pytest

from oneflow_dist.config import Config
from tests.messages import names, refused
from tools.experiments.reading import Probe
from tools.experiments.rows import steps_of, ways_of, with_settings


def test_every_way_comes_with_every_value(config: Config) -> None:
    ways = {"euler": ('sampling.solver="euler"',), "heun": ('sampling.solver="heun"',)}
    probe = Probe(kind="any", title="", ways=ways, vary="sampling.steps", values=(2.0, 4.0))
    found = [(way, x, own.sampling.solver, own.sampling.steps) for way, x, own in ways_of(config, probe)]
    assert found == [(way, steps, way, steps) for way in ("euler", "heun") for steps in (2, 4)]
    assert [(way, x) for way, x, _ in ways_of(config, Probe(kind="any", title=""))] == [("", None)]


@pytest.mark.parametrize("forwards", [4, 8, 16, 33])
def test_of_equal_forwards_a_correction_takes_its_own(forwards: int, make_config: Callable[..., Config]) -> None:
    plain = make_config("sampling.corrections=0")
    assert steps_of(plain, forwards) == forwards
    corrected = make_config("sampling.corrections=2", "sampling.corrected_from=0.5", "sampling.time_power=1.0")
    steps = steps_of(corrected, forwards)
    assert steps + 2 * -(-steps // 2) <= forwards < steps + 1 + 2 * -(-(steps + 1) // 2)


def test_too_few_forwards_are_refused(make_config: Callable[..., Config]) -> None:
    config = make_config("sampling.corrections=4", "sampling.corrected_from=0.5")
    assert names(refused(steps_of, config, 4), 4, 4)


def test_a_setting_that_cannot_be_is_refused(config: Config) -> None:
    assert names(refused(with_settings, config, ("sampling.steps=0",)), "sampling.steps", 0)
    assert with_settings(config, ("sampling.steps=3",)).sampling.steps == 3
