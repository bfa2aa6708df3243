from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, StepMetrics
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.flow.losses import are_finite, compute_losses
from oneflow_dist.guard.bad_batches import read_bad_batch
from oneflow_dist.guard.guard import PATIENCE, Guard
from oneflow_dist.guard.skipping import WARMUP_STEPS, GuardState
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.stored_tensors import named_leaves
from oneflow_dist.trained import load_model
from oneflow_dist.training import build_model, train_step
from tests.launching import Launcher, Run, read_checkpoint, read_metrics, without_timings
from tests.messages import names, naming

CPU = torch.device("cpu")
MakeParts = Callable[..., tuple[OneFlow, AdamW, MovingAverage, list[PackedBatch], Config, Guard]]
TrainCommand = Callable[..., list[str]]


@pytest.fixture
def make_parts(make_config: Callable[..., Config], tmp_path: Path, group_of_one: None) -> MakeParts:
    """What `train_step` takes, on this process."""
    sizes = {"packs_per_step": 2, "rows_per_pack": 256, "tokens_per_pack": 192, "bag_tokens_per_pack": 128}
    sizes |= {"sequences_per_pack": 64, "max_sample_rows": 64, "window_samples": 32}

    def make(*overrides: str) -> tuple[OneFlow, AdamW, MovingAverage, list[PackedBatch], Config, Guard]:
        fixed = ["modality.image.per_pack=48", *(f"data.{key}={size}" for key, size in sizes.items())]
        config = make_config(f"run.folder={tmp_path}", *fixed, *overrides)
        model = build_model(config, make_mesh(config, 1, "cpu"), CPU)
        optimizer, ema = AdamW(model, config.optim), MovingAverage(model, config.optim.ema_decay)
        return model, optimizer, ema, PackLoader(config, 0, 1).next_step(), config, Guard(config)

    return make


def state_of(model: OneFlow, optimizer: AdamW) -> list[torch.Tensor]:
    return [
        tensor.detach().clone() for tensor in (*model.parameters(), *dict(named_leaves(optimizer.tensors)).values())
    ]


def step_of(guard: Guard, *parts: Any) -> StepMetrics:
    """What became of a step, looked at before the next."""
    return guard.finish(train_step(*parts, guard))


def test_a_skipped_step_leaves_weights_moments_and_adams_clock_alone(
    make_parts: MakeParts, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, optimizer, ema, batches, config, guard = make_parts("guard.max_skipped_steps=1")
    assert step_of(guard, model, optimizer, ema, batches, 1, config).skipped == ""
    before, patch = state_of(model, optimizer), batches[1].pieces[0].patches[0].clone()
    batches[1].pieces[0].patches[0] = math.inf
    assert step_of(guard, model, optimizer, ema, batches, 2, config).skipped == "not finite"
    assert all(torch.equal(*pair) for pair in zip(state_of(model, optimizer), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert names(capsys.readouterr().out, 2, 0, "zero", 1, "guard.max_skipped_steps", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["bad-batch-step-00000002-rank-0-pack-1.pt"]

    batches[1].pieces[0].patches[0] = patch
    assert step_of(guard, model, optimizer, ema, batches, 3, config).skipped == ""
    assert float(optimizer.clock) == 2.0
    assert (guard.state.accepted, guard.state.skipped) == (2, 1)


def test_the_skip_beyond_the_budget_ends_the_run(make_parts: MakeParts) -> None:
    model, optimizer, ema, batches, config, guard = make_parts("guard.max_skipped_steps=1")
    batches[0].pieces[0].patches[0] = math.nan
    step_of(guard, model, optimizer, ema, batches, 1, config)
    before = state_of(model, optimizer)
    with pytest.raises(FloatingPointError, match=naming(2, 0, "guard.max_skipped_steps", 1, "optim.lr")):
        step_of(guard, model, optimizer, ema, batches, 2, config)
    assert all(torch.equal(*pair) for pair in zip(state_of(model, optimizer), before, strict=True))


def test_a_gradient_norm_that_is_not_finite_is_no_step_though_the_losses_are(make_parts: MakeParts) -> None:
    model, optimizer, ema, batches, config, guard = make_parts()
    hook = next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match=naming(1, "zero", "nan")):
        step_of(guard, model, optimizer, ema, batches, 1, config)
    hook.remove()


def test_a_spike_is_skipped_and_named_with_the_pack_of_the_highest_loss(
    make_parts: MakeParts, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, optimizer, ema, batches, config, guard = make_parts("guard.max_skipped_steps=1", "guard.spike_factor=5")
    norm = step_of(guard, model, optimizer, ema, batches, 1, config).grad_norm
    guard = Guard(config, GuardState(norm_mean=norm, accepted=WARMUP_STEPS))
    before = state_of(model, optimizer)
    batches[1].pieces[0].velocity[:] *= 100.0
    metrics = step_of(guard, model, optimizer, ema, batches, 2, config)
    assert metrics.skipped == "spike"
    assert metrics.grad_norm > 5 * norm
    assert all(torch.equal(*pair) for pair in zip(state_of(model, optimizer), before, strict=True))
    assert guard.state.norm_mean == pytest.approx(norm)  # what was skipped is not in the mean
    norms = f"{metrics.grad_norm:g}", f"{norm:g}"
    assert names(capsys.readouterr().out, 2, *norms, "guard.spike_factor", 5, 0, batches[1].keys[0])
    (kept,) = read_bad_batch(next(tmp_path.glob("bad-batch-*.pt"))).pieces
    assert torch.equal(kept.velocity, batches[1].pieces[0].velocity)


BROKEN_STEPS = """
import torch.distributed as dist

from oneflow_dist import train, training
from oneflow_dist.runtime import run_program

make_step = training.train_step


def train_step(model, optimizer, ema, batches, step, config, guard):
    if step == 3 and dist.get_rank() == 1:
        batches[-1].pieces[0].patches[0, 0] = float("nan")
    if step == 26:
        for batch in batches:
            batch.pieces[0].velocity[:] *= 1000.0
    return make_step(model, optimizer, ema, batches, step, config, guard)


training.train_step = train_step
run_program(train.main)
"""


@pytest.fixture(scope="module")
def broken_run(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, train_command: TrainCommand
) -> tuple[Run, list[str | Path]]:
    """Two ranks, 30 steps, of which step 3 is not finite on one of them and step 26 is a spike."""
    base = tmp_path_factory.mktemp("broken")
    (base / "program.py").write_text(BROKEN_STEPS)
    overrides = ["train.steps=30", "guard.max_skipped_steps=2", "guard.spike_factor=8", "sampling.every_steps=0"]
    command = [base / "program.py", *train_command(base / "run", *overrides)[2:]]
    return Run(base / "run", launcher.run_ranks(2, *command)[0]), command


def test_a_run_goes_on_after_broken_steps_and_says_which(broken_run: tuple[Run, list[str | Path]]) -> None:
    run, _ = broken_run
    assert run.end.code == 0, run.end.stderr
    lines = read_metrics(run.folder)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert {line["step"]: line["skipped"] for line in lines if "skipped" in line} == {3: "not finite", 26: "spike"}
    assert (lines[2]["loss"], lines[2]["grad_norm"]) == (None, None)  # JSON has no NaN
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()
    assert all(math.isfinite(line["loss"]) for line in lines if line["step"] != 3)
    not_finite, spike = [line for line in run.end.stdout.splitlines() if "guard.max_skipped_steps" in line]
    assert names(not_finite, 3, 1, "nan")
    assert names(spike, 26, f"{lines[25]['grad_norm']:g}", "guard.spike_factor")


@torch.no_grad()
def test_a_kept_batch_repeats_what_was_wrong_with_it(broken_run: tuple[Run, list[str | Path]]) -> None:
    run, _ = broken_run
    model, config = load_model(run.folder)
    (path,) = run.folder.glob("bad-batch-step-00000003-*.pt")
    batch = read_bad_batch(path)
    assert not are_finite(compute_losses(model(batch), batch, batch.counts, config))
    mended = replace(batch, pieces=tuple(replace(p, patches=p.patches.nan_to_num(0.0)) for p in batch.pieces))
    assert are_finite(compute_losses(model(mended), mended, batch.counts, config))


def test_a_run_resumed_between_broken_steps_is_bitwise_the_unbroken_one(
    broken_run: tuple[Run, list[str | Path]], launcher: Launcher, tmp_path: Path
) -> None:
    run, command = broken_run
    folder, last = tmp_path / "run", "checkpoints/step-00000030"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / last)
    for path in folder.glob("bad-batch-*.pt"):
        path.unlink()
    again = [f"run.folder={folder}" if str(word).startswith("run.folder=") else word for word in command]
    ends = launcher.run_ranks(2, *again)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr
    assert f"{folder}/checkpoints/step-00000020" in ends[0].stdout
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(run.folder))
    own, theirs = ((path / last / "progress.json").read_text() for path in (folder, run.folder))
    assert own == theirs
    assert '"skipped": 2' in own
    state, expected = (read_checkpoint(path / last, tmp_path / "state.pt") for path in (folder, run.folder))
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 50
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
        assert torch.isfinite(tensor).all(), name
    assert {float(value) for name, value in tensors.items() if name == "optimizer.clock"} == {28.0}
    assert [path.name[10:23] for path in folder.glob("bad-batch-*.pt")] == ["step-00000026"]


def test_long_phases_and_the_first_step_have_more_time(make_config: Callable[..., Config]) -> None:
    guard = Guard(make_config("guard.hang_seconds=30"))
    assert guard.place.limit == math.inf
    limits = {}
    for step in (7, 8):
        for phase in ("waiting for data", "forward and backward", "optimizer step", "checkpoint", "sampling"):
            guard.enter(phase, step)
            assert (guard.place.step, guard.place.phase) == (step, phase)
            limits[step, phase] = guard.place.limit
    long = 30.0 * PATIENCE
    assert [limits[7, phase] for phase in ("waiting for data", "forward and backward", "checkpoint")] == [long] * 3
    assert [limits[8, phase] for phase in ("waiting for data", "forward and backward", "checkpoint")] == [30, 30, long]


SLOW_DATA = """
import time
import torch.distributed as dist

from oneflow_dist import train
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.runtime import run_program

make_packs, now = PackLoader.next_step, 0.0


def next_step(self):
    global now
    now += 1.0 if dist.get_rank() == 2 else 0.0
    return make_packs(self)


PackLoader.next_step = next_step
time.monotonic = lambda: now  # nothing else takes time, however busy the machine is
run_program(train.main)
"""


def test_the_rank_that_the_others_wait_for_is_named(
    launcher: Launcher, train_command: TrainCommand, tmp_path: Path
) -> None:
    folder, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(SLOW_DATA)
    overrides = ["train.steps=6", "guard.slow_ranks_every_steps=3", "guard.hang_seconds=60", "sampling.every_steps=0"]
    ends = launcher.run_ranks(4, program, *train_command(folder, *overrides)[2:])
    assert [end.code for end in ends] == [0] * 4, ends[0].stderr
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "slowest_rank" in line] == [3, 6]
    assert [lines[step - 1]["slowest_rank"] for step in (3, 6)] == [2, 2]
    assert [lines[step - 1]["slowest_behind_seconds"] for step in (3, 6)] == [1.0, 1.0]
    said = [line for line in ends[0].stdout.splitlines() if " 1 s " in line]
    for line, step, steps in zip(said, (3, 6), (3, 2), strict=True):  # but the first; the fourth has begun
        assert names(line, step, 2, "1 s", steps, "1 s")
    assert not (folder / "hangs").exists()  # nothing hung


@pytest.mark.usefixtures("group_of_one")
def test_without_its_interval_no_rank_is_reported(make_config: Callable[..., Config]) -> None:
    guard = Guard(make_config())
    assert [guard.slowest_rank(step) for step in (1, 2)] == [{}, {}]
