from __future__ import annotations

import pytest

from tools.comparison.published_runs import (
    KEMPNER_13B,
    LLAMA_8B,
    MPT_1B,
    RUNS,
    Trunk,
    per_token,
)


@pytest.mark.parametrize(
    ("trunk", "parameters"),
    [
        (LLAMA_8B, 8.03e9),
        (KEMPNER_13B, 14.84e9),
        (MPT_1B, 1_315_950_592),
    ],
)
def test_trunks_have_the_parameters_that_were_published(trunk: Trunk, parameters: float) -> None:
    products = per_token(trunk, 0) / 6.0
    embedding = 0 if trunk.tied else trunk.width * trunk.vocab
    assert products + embedding == pytest.approx(parameters, rel=0.01)  # norms, positions; widths are rounded


def test_mfu_is_that_which_systems_report_for_these_speeds() -> None:
    """39 % (8B of torchtitan without halving of causal attention); 41.82 % (1B of llm-foundry)."""
    by_name = {(run.system, run.name): run for run in RUNS}
    titan = by_name["torchtitan", "8B, 8 H100, compiled"]
    foundry = by_name["llm-foundry", "1B, 8 H100"]
    assert titan.tokens_per_second * per_token(titan.trunk, titan.length) / 989e12 == pytest.approx(0.39, abs=0.002)
    assert foundry.tokens_per_second * per_token(foundry.trunk, foundry.length) / 989e12 == pytest.approx(
        0.4182, rel=0.01
    )


def test_no_run_is_named_twice() -> None:
    assert len({(run.system, run.name) for run in RUNS}) == len(RUNS)
