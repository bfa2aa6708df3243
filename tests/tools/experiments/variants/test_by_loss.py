from __future__ import annotations

from oneflow_dist.config import Config
from tools.experiments.token_counts import ease, measure_once
from tools.experiments.token_schedule import EARLIEST, LATEST, rank_of
from tools.experiments.variants.by_loss import replacements


def test_tokens_that_are_hard_to_guess_come_early(config: Config) -> None:
    noising = replacements()["oneflow_dist.flow.noising:Noising.of"](config)  # type: ignore[operator]
    rank = rank_of(measure_once(ease, config))
    assert noising.exponents().tolist() == (EARLIEST + (LATEST - EARLIEST) * rank).tolist()
