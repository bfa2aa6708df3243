from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.model.flops import step_flops
from tests.messages import names, refused
from tests.tools.comparison.made_up import CONFIGS, SHARES, contender, plan
from tools.comparison.plan import COUNTED, count_flops, plan_runs, read_contenders, steps_of


@pytest.mark.parametrize(
    ("share", "flops", "steps"), [(1.0, 5.0, 200), (0.5, 5.0, 100), (1.0, 2.5, 400), (0.3, 7.0, 43)]
)
def test_a_share_of_the_budget_is_so_many_steps(share: float, flops: float, steps: int) -> None:
    assert steps_of(share, 1000.0, flops) == steps


def test_runs_cost_the_same_and_come_seed_by_seed_of_every_config(tmp_path: Path) -> None:
    cheap = dataclasses.replace(contender("masked_quickstart"), flops_per_step=2e9)
    runs = plan_runs([contender(), cheap], 100, (1.0, 0.5), (3, 4), tmp_path)
    assert [run.name for run in runs[:4]] == [
        f"{name}-{share}-3" for share in ("0.5", "1") for name in CONFIGS if name[0] in "qm"
    ]
    assert [run.seed for run in runs] == [3] * 4 + [4] * 4
    assert [run.steps for run in runs[:4]] == [50, 125, 100, 250]
    assert runs[0].flops == runs[1].flops
    assert runs[0].folder.parent == tmp_path / "runs"


def test_without_steps_the_budget_is_that_of_the_first_config(tmp_path: Path) -> None:
    last = plan(tmp_path, steps=0)[2 * len(CONFIGS)]
    assert (last.share, last.steps) == (1.0, load_config(CONFIGS["quickstart"]).train.steps)


@pytest.mark.parametrize(("steps", "warmup"), [(120, (7, 15, 30)), (2000, (125, 150, 150))])
def test_a_run_warms_up_for_a_quarter_of_its_steps_at_most(steps: int, warmup: tuple[int, ...], tmp_path: Path) -> None:
    runs = plan(tmp_path, names=["quickstart"], seeds=[5], steps=steps)
    configs = [load_config(run.contender.path, list(run.overrides)) for run in runs]
    assert tuple(config.optim.warmup_steps for config in configs) == warmup
    for run, config in zip(runs, configs, strict=True):
        assert config.train.steps == config.checkpoint.every_steps == config.validation.every_steps == run.steps
        assert (config.run.seed, config.run.folder) == (5, str(run.folder))
        assert config.sampling.every_steps == config.data.workers == 0


def test_the_flops_of_a_step_are_those_of_real_packs(make_config: Callable[..., Config]) -> None:
    config = make_config("data.rows_per_pack=512", "data.window_samples=32")
    loader = PackLoader(config, 0, 1)
    packs = [batch for _ in range(COUNTED) for batch in loader.next_step()]
    expected = sum(step_flops(batch.counts, config) for batch in packs) / COUNTED
    assert count_flops(config) == pytest.approx(expected)


def test_a_share_of_less_than_a_step_is_refused(tmp_path: Path) -> None:
    message = refused(plan_runs, [contender()], 10, [0.01], [0], tmp_path)
    assert names(message, "--shares", "0.01", CONFIGS["quickstart"], 0)


def test_two_configs_of_one_name_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "quickstart.toml"
    copy.write_text(CONFIGS["quickstart"].read_text())
    assert names(refused(read_contenders, [CONFIGS["quickstart"], copy], []), CONFIGS["quickstart"], copy)


@pytest.mark.parametrize("key", ["data.mixture", "data.tokenizer", "validation.samples"])
def test_configs_of_other_data_are_refused(key: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    path, value = tmp_path / "other.toml", {"samples": "7"}.get(name, "'elsewhere'")
    text = CONFIGS["quickstart"].read_text()
    path.write_text(re.sub(rf"(?m)^(\[{section}\](?:\n[^\[]*)*?\n{name} = ).*$", rf"\g<1>{value}", text, count=1))
    assert names(refused(read_contenders, [CONFIGS["quickstart"], path], []), key, CONFIGS["quickstart"], path)


def test_a_config_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(re.sub(r"(?s)\[validation\].*", "", CONFIGS["quickstart"].read_text()))
    assert names(refused(read_contenders, [path], []), path, "validation.mixture")


@pytest.mark.parametrize("key", ["train.steps", "run.seed", "validation.every_steps"])
def test_what_every_run_has_of_its_own_is_not_set_for_all(key: str) -> None:
    assert names(refused(read_contenders, [CONFIGS["quickstart"]], [f"{key}=7"]), f"--set {key}=7")


def test_settings_hold_in_every_config(tmp_path: Path) -> None:
    (found,) = read_contenders([CONFIGS["quickstart"]], ["optim.lr=0.5"])
    run = plan_runs([dataclasses.replace(found, flops_per_step=1.0)], 9, SHARES, [0], tmp_path)[0]
    assert found.config.optim.lr == load_config(run.contender.path, list(run.overrides)).optim.lr == 0.5
