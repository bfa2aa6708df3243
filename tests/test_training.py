from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.guard.guard import Guard
from oneflow_dist.model.initialization import all_indices, first_value
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage, learning_rate
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.training import build_model, sum_over_ranks, train_step
from tests.launching import (
    Launcher,
    Run,
    assert_same_losses,
    assert_same_pictures,
    assert_same_steps,
    read_checkpoint,
    read_metrics,
    without_timings,
)
from tests.messages import names, naming

StepParts = tuple[OneFlow, AdamW, MovingAverage, list[PackedBatch], Config, Guard]
CPU = torch.device("cpu")


def test_every_step_of_two_ranks_is_that_of_one_process(torchrun_of_two: Run, unbroken: Run) -> None:
    """Other layouts are in tests/test_resume.py, and in tests/parallel."""
    assert (unbroken.end.code, torchrun_of_two.end.code) == (0, 0), unbroken.end.stderr + torchrun_of_two.end.stderr
    assert_same_steps(torchrun_of_two.folder, unbroken.folder)
    assert [line["step"] for line in read_metrics(unbroken.folder)] == list(range(1, 21))
    assert_same_pictures(torchrun_of_two.folder, unbroken.folder)


def test_a_run_says_what_it_does_and_draws_its_progress_bar_on_stderr(unbroken: Run) -> None:
    first, *_, begin, end = unbroken.end.stdout.splitlines()
    assert names(first, unbroken.folder, 20, "configs/debug.toml")
    assert names(begin, 1)
    assert names(end, 20, f"oneflow serve {unbroken.folder}")
    bars = [line for line in unbroken.end.stderr.replace("\r", "\n").splitlines() if line]
    assert bars
    assert all("/20" in bar for bar in bars)


def test_a_run_folder_holds_config_metrics_samples_and_checkpoints(unbroken: Run) -> None:
    found = sorted(str(path.relative_to(unbroken.folder)) for path in unbroken.folder.rglob("*"))
    checkpoint = (
        "",
        "/COMPLETE",
        "/__0_0.distcp",
        "/.metadata",
        "/config.toml",
        "/progress.json",
        "/tokenizer.tiktoken",
    )
    steps = ("checkpoints/step-00000010", "checkpoints/step-00000020")
    expected = ["checkpoints", "config.toml", "last_checkpoint", "metrics.jsonl"]
    expected += ["samples", "samples/step-00000020.png"]
    assert found == sorted([*expected, *(step + file for step in steps for file in checkpoint)])
    written = load_config(unbroken.folder / "config.toml")
    assert written.run == load_config("configs/debug.toml", [f"run.folder={unbroken.folder}"]).run
    assert load_config(unbroken.folder / "checkpoints/step-00000010/config.toml") == written


def test_metrics_of_a_step_have_these_names_and_are_finite(unbroken: Run) -> None:
    timings = ["seconds", "data_wait", "tokens_per_second", "images_per_second", "tflops_per_second"]
    losses = ["loss", *(f"loss/{name}" for name in ("zero", "rate", "bag", "velocity_image"))]
    names = [*losses, "grad_norm", "lr", "samples", "text_tokens", "bag_tokens", "padding", *timings]
    for line in read_metrics(unbroken.folder):
        assert list(line) == ["step", *names]
        assert all(math.isfinite(line[name]) for name in names)
        assert all(line[name] > 0.0 for name in timings)
        assert 0.0 <= line["padding"] < 0.05


def test_the_loss_is_the_weighted_sum_of_its_parts_and_falls(unbroken: Run) -> None:
    lines, modality = read_metrics(unbroken.folder), load_config(unbroken.folder / "config.toml").modality
    weight = modality["image"].loss_weight
    for line in lines:
        text = line["loss/zero"] + line["loss/rate"] + line["loss/bag"]
        assert line["loss"] == pytest.approx(text + weight * line["loss/velocity_image"], rel=1e-6)
    assert np.mean([x["loss"] for x in lines[-5:]]) < 0.8 * np.mean([x["loss"] for x in lines[:5]])


def test_before_the_first_update_the_heads_are_undecided_and_the_velocity_is_zero(unbroken: Run) -> None:
    """The odds that something is missing are 1 + left + left^2 of the time left, so the chance is 1/2 to 3/4."""
    first = read_metrics(unbroken.folder)[0]
    assert math.log(4.0 / 3.0) < first["loss/zero"] < math.log(4.0)
    # E (patch - noise)^2 = E patch^2 + 1, and the pixels of digits lie in [-1, 1].
    assert 1.2 < first["loss/velocity_image"] < 2.0


def test_metrics_name_the_learning_rate_of_their_step(unbroken: Run) -> None:
    config = load_config(unbroken.folder / "config.toml")
    for line in read_metrics(unbroken.folder):
        assert line["lr"] == learning_rate(line["step"], config.train.steps, config.optim)


def test_progress_of_the_data_is_one_entry_for_each_lane(unbroken: Run) -> None:
    progress = json.loads((unbroken.folder / "checkpoints/step-00000020/progress.json").read_text())
    assert progress["step"] == 20
    assert sorted(progress["lanes"]) == ["0", "1", "2", "3"]
    for lane in progress["lanes"].values():
        assert len(lane["waiting"]) < 32  # fewer than data.window_samples wait after a pack was taken


def test_the_average_follows_the_weights_after_every_step(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = ["train.steps=3", "checkpoint.every_steps=1", "checkpoint.keep=3", "sampling.every_steps=0"]
    end = launcher.run(*train_command(folder, *overrides))
    assert end.code == 0, end.stderr
    states = {n: read_checkpoint(folder / f"checkpoints/step-{n:08d}", tmp_path / "state.pt") for n in (1, 2, 3)}
    config = load_config(folder / "config.toml")
    names = [name.removeprefix("model.") for name in states[1] if name.startswith("model.")]
    shapes = {name: states[1][f"model.{name}"].shape for name in names}
    average = {
        name: first_value(name, shape, config.run.seed, config.model.num_layers, all_indices(shape))
        for name, shape in shapes.items()
    }
    for step, state in states.items():
        assert float(state["optimizer.clock"]) == step
        decay = (1 + step) / (10 + step)  # below optim.ema_decay in the first steps
        for name in names:
            average[name] = decay * average[name] + (1.0 - decay) * state[f"model.{name}"]
            torch.testing.assert_close(state[f"ema.{name}"], average[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(states[3][f"ema.{name}"], states[3][f"model.{name}"]) for name in names)


@pytest.fixture
def step_parts(make_config: Callable[..., Config], tmp_path: Path, group_of_one: None) -> StepParts:
    """What `train_step` takes, on this process."""
    sizes = {"packs_per_step": 2, "rows_per_pack": 256, "tokens_per_pack": 192, "bag_tokens_per_pack": 128}
    sizes |= {"sequences_per_pack": 64, "max_sample_rows": 64, "window_samples": 32}
    own = (f"run.folder={tmp_path}", "modality.image.per_pack=48")
    config = make_config(*own, *(f"data.{key}={size}" for key, size in sizes.items()))
    model = build_model(config, make_mesh(config, 1, "cpu"), CPU)
    optimizer, ema = AdamW(model, config.optim), MovingAverage(model, config.optim.ema_decay)
    return model, optimizer, ema, PackLoader(config, 0, 1).next_step(), config, Guard(config)


def test_a_step_lowers_the_loss_of_its_own_batches_and_leaves_no_gradients(step_parts: StepParts) -> None:
    model, optimizer, ema, batches, config, guard = step_parts
    losses = [
        float(guard.finish(train_step(model, optimizer, ema, batches, step, config, guard)).losses.total)
        for step in range(1, 9)
    ]
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_as_they_were(step_parts: StepParts) -> None:
    model, optimizer, ema, batches, config, guard = step_parts
    guard.finish(train_step(model, optimizer, ema, batches, 1, config, guard))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    moments = [moment.clone() for moment in optimizer.first_moments.values()]
    batches[1].pieces[0].patches[0] = math.inf
    with pytest.raises(FloatingPointError, match=naming(2, 0, "optim.lr")):
        guard.finish(train_step(model, optimizer, ema, batches, 2, config, guard))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights, strict=True))
    assert all(torch.equal(*pair) for pair in zip(optimizer.first_moments.values(), moments, strict=True))


def summed(norms: list[float]) -> list[float]:
    rank = dist.get_rank()
    losses = torch.full((2, 5), 1.0 + rank)  # of two microbatches
    return sum_over_ranks(losses, torch.tensor(norms[rank])).tolist()


def test_ranks_share_the_losses_of_all_and_the_gradient_norm_of_the_first(launcher: Launcher) -> None:
    norm = torch.tensor(0.1).item()
    assert launcher.call(2, summed, [0.1, 0.1000001]) == [[6.0] * 5 + [norm]] * 2


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_norm_that_is_not_finite_on_one_rank_is_so_on_all(norm: float, launcher: Launcher) -> None:
    for *losses, shared in launcher.call(2, summed, [0.1, norm]):
        assert losses == [6.0] * 5
        assert math.isnan(shared)


SAYS_WHETHER_DETERMINISTIC = """
import torch

from oneflow_dist import train, training
from oneflow_dist.runtime import run_program


def say(what, function):
    def call(*arguments):
        print(what, torch.are_deterministic_algorithms_enabled())
        return function(*arguments)

    return call


training.train_step = say("step", training.train_step)
training.draw_progress = say("pictures", training.draw_progress)
run_program(train.main)
"""


def test_a_deterministic_run_is_bitwise_its_repetition(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = ["train.deterministic=true", "train.steps=6", "checkpoint.every_steps=6", "sampling.every_steps=6"]
    states = []
    program = tmp_path / "program.py"
    program.write_text(SAYS_WHETHER_DETERMINISTIC)
    for name in ("one", "other"):
        ends = launcher.run_ranks(2, program, *train_command(tmp_path / name, *overrides)[2:])
        assert [end.code for end in ends] == [0, 0], ends[0].stderr
        assert all("step True\n" * 6 + "pictures False\n" in end.stdout for end in ends)
        states.append(read_checkpoint(tmp_path / name / "checkpoints/step-00000006", tmp_path / "state.pt"))
    tensors = {key: value for key, value in states[0].items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 50
    for key, value in tensors.items():
        assert torch.equal(value, states[1][key]), key


def test_a_signal_to_one_rank_stops_all_after_a_checkpoint_and_the_same_command_goes_on(
    launcher: Launcher, train_command: Callable[..., list[str]], unbroken: Run, tmp_path: Path
) -> None:
    """Every signal of tests/test_signals.py is noted alike."""
    folder = tmp_path / "run"
    overrides = ["sampling.every_steps=0", "checkpoint.every_steps=1000"]
    job = launcher.start(*train_command(folder, *overrides), num_ranks=2)
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 4:
        time.sleep(0.005)
    os.kill(job.pids[1], signal.SIGTERM)
    ends = job.wait()
    assert [end.code for end in ends] == [0, 0], ends[1].stderr
    step = len(read_metrics(folder))
    assert 4 <= step < 20
    assert names(ends[0].stdout.splitlines()[-1], step)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:08d}"]

    again = launcher.run_ranks(2, *train_command(folder, *overrides))[0]
    assert again.code == 0, again.stderr
    assert f"{folder}/checkpoints/step-{step:08d}" in again.stdout
    assert_same_losses(read_metrics(folder), read_metrics(unbroken.folder))


def test_options_of_memory_and_speed_change_no_bit_of_a_run(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Two ranks, with and without; the second also leaves what its options promise."""
    short = ["train.steps=4", "checkpoint.every_steps=4", "sampling.every_steps=0"]
    memory = ["train.activation_checkpointing=selective", "optim.offload=true"]
    options = [*memory, "train.gc_every_steps=2", "metrics.profile_step=3"]
    for folder, overrides in (("plain", []), ("options", options)):
        ends = launcher.run_ranks(2, *train_command(tmp_path / folder, *short, *overrides))
        assert [end.code for end in ends] == [0, 0], ends[0].stderr
    own, theirs = (without_timings(read_metrics(tmp_path / folder)) for folder in ("plain", "options"))
    assert len(own) == 4
    assert own == theirs
    places = [tmp_path / folder / "checkpoints/step-00000004" for folder in ("plain", "options")]
    expected, found = (read_checkpoint(place, tmp_path / "state.pt") for place in places)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name
    traces = sorted(path.name for path in (tmp_path / "options" / "traces").iterdir())
    assert traces == [f"step-00000003-rank-{rank}.json.gz" for rank in (0, 1)]


def test_a_run_continues_in_host_memory_from_a_checkpoint_made_without(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    short = ["train.steps=4", "checkpoint.every_steps=2", "sampling.every_steps=0"]
    assert launcher.run(*train_command(tmp_path, *short)).code == 0
    expected = read_checkpoint(tmp_path / "checkpoints/step-00000004", tmp_path / "state.pt")
    shutil.rmtree(tmp_path / "checkpoints/step-00000004")
    end = launcher.run(*train_command(tmp_path, *short, "optim.offload=true"))
    assert end.code == 0, end.stderr
    assert str(tmp_path / "checkpoints/step-00000002") in end.stdout
    found = read_checkpoint(tmp_path / "checkpoints/step-00000004", tmp_path / "state.pt")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name
