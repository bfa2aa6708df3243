from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tools.comparison.made_up import CONFIGS, SHARES, outcomes, plan, reading
from tools.comparison.figures import FIGURES
from tools.comparison.means import gather, parity, standard_error


def test_readings_are_gathered_by_config_seed_and_share_in_any_order(tmp_path: Path) -> None:
    runs = plan(tmp_path, seeds=[4, 2])
    gathered = gather([reading(run) for run in runs[::-1]])
    assert {outcome.name for outcome in gathered} == set(CONFIGS)
    for outcome in gathered:
        assert outcome.shares == SHARES
        assert [[r.run.seed for r in row] for row in outcome.readings] == [[2] * 3, [4] * 3]
        assert outcome.steps == [30, 60, 120]
        assert outcome.seconds.shape == outcome.flops.shape == outcome.values(FIGURES[0]).shape == (2, 3)


def test_the_standard_error_is_that_of_a_mean() -> None:
    values = np.array([[1.0, 5.0], [3.0, 5.0]])
    found = standard_error(values)
    assert found is not None
    assert np.allclose(found, [1.0, 0.0])
    assert standard_error(values[:1]) is None


def test_the_ratio_is_that_of_the_flops_whichever_way_is_better(tmp_path: Path) -> None:
    first, rival, _ = outcomes(tmp_path, rival_efficiency=0.5)
    ratios = parity(first, rival, samples=256)
    assert list(ratios) == [figure.key for figure in FIGURES]
    assert all(ratio.value == pytest.approx(0.5) for ratio in ratios.values())
