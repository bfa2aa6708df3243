from __future__ import annotations

from oneflow_dist.config import Config
from tools.experiments.token_counts import frequency, measure_once
from tools.experiments.token_schedule import EARLIEST, LATEST, rank_of
from tools.experiments.variants.rare_first import replacements


def test_rare_tokens_come_early_and_frequent_ones_late(config: Config) -> None:
    noising = replacements()["oneflow_dist.flow.noising:Noising.of"](config)  # type: ignore[operator]
    rank = rank_of(measure_once(frequency, config))
    assert noising.exponents().tolist() == (EARLIEST + (LATEST - EARLIEST) * rank).tolist()
