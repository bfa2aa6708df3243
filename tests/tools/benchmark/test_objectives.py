"""One trunk by all objectives: what comes out is a config that can be loaded, with the same trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from oneflow_dist.config import Config, check_config
from oneflow_dist.objective import Kind
from tools.benchmark.objectives import with_objective

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_alone_can_do_is_left_out(make_config: Callable[..., Config], kind: Kind) -> None:
    config = make_config(
        "model.prompt_sees=prompt",
        "flow.bags=averaged",
        "sampling.corrections=1",
        "sampling.blocks=2",
        "sampling.guidance={image = 3.0, gate = 2.0, rate = 2.0, tokens = 2.0}",
    )
    other = with_objective(config, kind)
    check_config(other)
    assert other.objective.kind == kind
    assert (other.modality, other.model.width, other.run) == (config.modality, config.model.width, config.run)
    if kind != "insertion":
        assert other.sampling.guidance == {"image": 3.0, "tokens": 2.0}
        assert other.data.bag_tokens_per_pack == config.data.rows_per_pack


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_that_has_the_objective_stays_as_it_is(config: Config, kind: Kind) -> None:
    own = with_objective(config, kind)
    assert with_objective(own, kind) is own


def test_a_length_that_masks_need_is_no_length_of_insertion(make_config: Callable[..., Config]) -> None:
    masked = make_config("objective.kind=masked", "heads.time_conditioning=none", "sampling.canvas_tokens=32")
    check_config(with_objective(masked, "insertion"))
