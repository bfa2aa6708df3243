from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oneflow_dist.data.loader import packs_of_rank
from oneflow_dist.model.flops import training_flops
from oneflow_dist.planning.trace import fresh_processes, full_pack
from tools.comparison.published_plans import Outcome, config_of, predict, summary
from tools.comparison.published_runs import RUNS, Published, Trunk, per_token

SMALL = Trunk(width=64, layers=4, heads=4, kv_heads=2, mlp_width=128, vocab=512)


def outcome(published: float, predicted: float, is_judged: bool = True, name: str = "x") -> Outcome:
    return Outcome(
        system="nanochat",
        name=name,
        published=published,
        predicted=predicted,
        mfu=0.4,
        predicted_mfu=0.5,
        exposed=0.0,
        is_judged=is_judged,
        known="",
        assumed="",
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.system} {run.name}")
def test_every_run_is_a_config_with_its_microbatches_full_of_texts(run: Published, root: Path) -> None:
    config = config_of(run, root)
    assert packs_of_rank(config, run.shard * run.replicate) == run.accumulated
    counts = full_pack(config).counts
    assert counts.rows == counts.open_slots == run.documents * run.length
    flops = training_flops(config, counts.rows, 2 * counts.attention_pairs, counts.rows)
    # Theirs counts attention backward twice, not 2.5 times, and no row that sees itself.
    attention = 14.0 * run.trunk.width * run.trunk.layers * 2 * counts.attention_pairs
    assert flops - attention / 7 == pytest.approx(per_token(run.trunk, run.length) * counts.rows, rel=0.005)


def test_a_run_is_predicted_from_its_shape(root: Path) -> None:
    run = dataclasses.replace(RUNS[0], trunk=SMALL, length=64, documents=2, shard=2)
    with fresh_processes(2) as pool:
        found = predict(run, root, pool)
    assert found.predicted > 0
    assert found.predicted_mfu / found.mfu == pytest.approx(found.predicted / found.published)
    assert 0.0 < found.exposed < 1.0


def test_errors_are_of_what_is_judged() -> None:
    found = summary([outcome(100, 110), outcome(100, 80, name="worst"), outcome(100, 300, is_judged=False)])
    assert found["runs"] == 2
    assert found["mean"] == pytest.approx(0.15)
    assert (found["worst"], found["worst_run"]) == (pytest.approx(-0.2), "nanochat worst")
