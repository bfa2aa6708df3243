from __future__ import annotations

from collections.abc import Callable

import pytest

from oneflow_dist.config import Config
from tests.messages import naming

AUTO, MASKED, PLAIN = "objective.kind=autoregressive", "objective.kind=masked", "heads.time_conditioning=none"


def test_an_objective_says_which_rows_see_which(make_config: Callable[..., Config]) -> None:
    assert make_config().sees == "all"
    assert make_config("model.prompt_sees=prompt").sees == "prompt"
    assert make_config(AUTO, PLAIN).sees == "past"
    assert make_config(MASKED, PLAIN, "model.prompt_sees=prompt").sees == "prompt"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["objective.kind=diffusion"], ("objective.kind", "'diffusion'", "'insertion'")),
        ([AUTO], ("heads.time_conditioning", "adaln", "autoregressive")),
        ([MASKED, PLAIN, "flow.bags=averaged"], ("flow.bags", "averaged", "masked")),
        ([AUTO, PLAIN, "model.prompt_sees=prompt"], ("model.prompt_sees", "prompt", "autoregressive")),
        ([AUTO, PLAIN, "sampling.blocks=2"], ("sampling.blocks", 2, "autoregressive")),
        ([AUTO, PLAIN, "sampling.canvas_tokens=8"], ("sampling.canvas_tokens", 8, "autoregressive")),
        ([MASKED, PLAIN, "sampling.corrections=1"], ("sampling.corrections", 1, "masked")),
        ([MASKED, PLAIN, "sampling.guidance={gate=2.0}"], ("sampling.guidance.gate", 2.0, "masked")),
        (["sampling.canvas_tokens=8"], ("sampling.canvas_tokens", 8, "insertion")),
        (["objective.context_noise=1.5"], ("objective.context_noise", 1.5)),
    ],
)
def test_knobs_that_an_objective_has_no_use_for_are_refused(
    overrides: list[str], named: tuple[object, ...], make_config: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        make_config(*overrides)
