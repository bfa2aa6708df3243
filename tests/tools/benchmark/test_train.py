"""Steps of a run, timed: what is counted, on one rank and on two, and where the time is said to go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.planning.batches import make_batch
from tests.launching import Launcher, only_error
from tools.benchmark.result import Measured, read_results
from tools.benchmark.train import (
    MICROSECONDS,
    MILLISECONDS,
    PEER,
    PhaseClock,
    Timed,
    Trainer,
    count_images,
    loaded_steps,
    made_up_steps,
    measure,
    rates,
    time_training,
)
from tools.benchmark.utilization import Peak, hardware_flops, utilization

CPU = torch.device("cpu")
SMALL = ("data.rows_per_pack=256", "data.tokens_per_pack=256", "model.vocab_size=384", "train.compile=false")


def measured_here(config: Config, *options: Any) -> Measured:
    return measure(config, *options, CPU)


def test_packs_are_those_that_a_run_trains_on_after_those_of_the_warm_up(
    launcher: Launcher, make_config: Callable[..., Config]
) -> None:
    config = make_config(*SMALL, "data.packs_per_step=2")
    steps, warmup = 3, 2
    (result,) = launcher.call(1, measured_here, config, steps, warmup, False, False)
    loader = PackLoader(config, 0, 1)
    packs = [loader.next_step() for _ in range(warmup + steps)][warmup:]
    counts = sum((batch.counts for step in packs for batch in step), Counts.zeros())
    seconds = sum(result.series[MILLISECONDS]["whole"]) / 1e3
    numbers = result.numbers
    assert numbers["tokens/s"] * seconds == pytest.approx(counts.text_tokens)
    assert numbers["rows/s"] * seconds == pytest.approx(counts.rows)
    assert numbers["documents/s"] * seconds == pytest.approx(counts.sequences)
    assert numbers["images/s"] * seconds == pytest.approx(sum(len(images_of(step)) for step in packs))
    assert numbers["TFLOP/s of a rank"] * 1e12 * seconds == pytest.approx(step_flops(counts, config))
    assert numbers["padding share"] == pytest.approx(1.0 - counts.rows / counts.padded_rows)
    assert numbers["peak memory of a rank, GiB"] > 0.05
    assert numbers["power of rank 0's device, W"] is numbers["rows per joule"] is None
    with torch.device("meta"):
        assert numbers["parameters"] == num_parameters(OneFlow(config))


def images_of(step: list[PackedBatch]) -> list[tuple[int, int]]:
    """Which pack and which image of it."""
    return sorted({(n, int(i)) for n, batch in enumerate(step) for i in batch.pieces[0].patch_piece})


def test_phases_and_percentiles_are_those_of_the_steps(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    (result,) = launcher.call(1, measured_here, make_config(*SMALL), 11, 1, True, False)
    whole, *phases = result.series[MILLISECONDS].values()
    assert [len(values) for values in (whole, *phases)] == [11] * 5
    assert [sum(of_step) for of_step in zip(*phases, strict=True)] == pytest.approx(whole)
    assert result.numbers["step p50, ms"] == sorted(whole)[5]
    assert min(whole) <= result.numbers["step p10, ms"] < result.numbers["step p90, ms"] <= max(whole)
    assert result.numbers["packs"] == "made up"


def slow_data(config: Config) -> Timed:
    trainer = Trainer(config, CPU)
    next_step = made_up_steps(trainer)

    def slow_step() -> list[PackedBatch]:
        time.sleep(0.2)
        return next_step()

    return time_training(trainer, PhaseClock(config, CPU), slow_step, 3)


def test_a_step_waits_for_data_as_long_as_its_packs_take(
    launcher: Launcher, make_config: Callable[..., Config]
) -> None:
    (timed,) = launcher.call(1, slow_data, make_config(*SMALL))
    waits = [phases["waiting for data"] for phases in timed.seconds]
    assert min(waits) >= 0.2
    assert all(wait < step for wait, step in zip(waits, timed.steps, strict=True))


@pytest.mark.usefixtures("group_of_one")
def test_shares_are_of_the_peak_and_count_what_is_computed_again_apart(make_config: Callable[..., Config]) -> None:
    config = make_config("train.activation_checkpointing=full")
    counts = replace(make_batch(config, 0).counts)
    phases = {"waiting for data": 1.0, "forward and backward": 3.0}
    numbers = rates(Timed(seconds=[phases], rows=[counts.rows], counts=counts), config, Peak(1e12, "given"))
    assert numbers["MFU"] == utilization(step_flops(counts, config), 4.0, Peak(1e12, "given"))
    assert numbers["HFU"] == pytest.approx(hardware_flops(counts, config) / 4e12)
    assert numbers["HFU"] > numbers["MFU"]  # type: ignore[operator]
    assert (numbers["data wait share"], numbers["peak is"]) == (0.25, "given")


def packs_of_this_rank(config: Config) -> tuple[list[str], list[int]]:
    trainer = Trainer(config, CPU)
    keys = [key for batch in loaded_steps(trainer)() for key in batch.keys]
    return keys, [int(batch.tokens.sum()) for batch in made_up_steps(trainer)()]


def test_ranks_train_on_packs_of_their_own(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    (keys, made_up), (other_keys, others_made_up) = launcher.call(
        2, packs_of_this_rank, make_config(*SMALL, "data.packs_per_step=4")
    )
    assert not set(keys) & set(other_keys)
    assert not set(made_up) & set(others_made_up)


def test_images_are_counted_whole_and_padding_is_none(config: Config) -> None:
    batch = make_batch(config, 0)
    assert count_images([batch, batch]) == 2 * batch.counts.sequences  # one in each made-up document


def arguments(train_command: Callable[..., list[str]], folder: Path, *more: str) -> list[str]:
    return ["-m", "tools.benchmark", "train", *train_command(folder)[2:], "--steps=2", "--warmup=1", *more]


def test_two_ranks_write_one_result_of_both(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = arguments(train_command, tmp_path / "run", f"--output={tmp_path / 'out'}", "--commit=0123abc")
    ends = launcher.run_ranks(2, *command)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    assert ends[1].stdout == ""
    (result,) = read_results(tmp_path / "out")
    assert (result.machine["ranks"], result.machine["commit"]) == (2, "0123abc")
    seconds = sum(result.measured.series[MILLISECONDS]["whole"]) / 1e3
    rows = result.measured.numbers["rows/s"] * seconds  # type: ignore[operator]
    assert 1800 < rows <= 2 * 4 * 256  # of both ranks: two steps of four packs, hardly padded
    assert not (tmp_path / "run").exists()
    secrets = json.dumps([result.command, result.machine])
    assert "RANK" not in secrets
    assert "PATH" not in secrets


def test_the_peer_is_timed_on_as_many_rows_beside_ours(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    config = make_config(*SMALL, "data.max_sample_rows=64")
    (result,) = launcher.call(1, measured_here, config, 2, 1, True, True)
    seconds = [value / 1e3 for value in result.series[MILLISECONDS][PEER]]
    assert result.series[MICROSECONDS][PEER] == pytest.approx([1e6 * value / 256 for value in seconds])
    assert result.numbers["rows/s of torchtitan"] == pytest.approx(2 * 256 / sum(seconds))
    assert 0.0 < result.numbers["MFU of torchtitan"] < 1.0


def test_the_peer_runs_on_one_rank_alone(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    end, _ = launcher.run_ranks(2, *arguments(train_command, tmp_path / "run", "--peer"))
    assert end.code == 2
    assert "--peer" in only_error(end)
