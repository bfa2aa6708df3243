from __future__ import annotations

import dataclasses
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Counts, NoisySample, Sample
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.flow.noising import is_deletable
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage
from oneflow_dist.parallel.mesh import data_rank, make_mesh
from oneflow_dist.process import process_of
from oneflow_dist.training import build_model
from oneflow_dist.validation import BINS, Validation, draw_documents, group_of, look_at
from tests.launching import Launcher, Run, read_checkpoint, read_metrics, wait_for_step, without_timings
from tests.messages import naming
from tests.parallel.packs import add_noise

CPU = torch.device("cpu")
OVERRIDES = ("validation.every_steps=5", "validation.samples=12", "sampling.every_steps=0")


@pytest.fixture(scope="module")
def held_out(digits: Path) -> tuple[str, ...]:
    """A run that measures losses on held-out digits."""
    return (f"validation.mixture={digits / 'heldout.yaml'}", *OVERRIDES)


@pytest.fixture(scope="module")
def validated(make_config: Callable[..., Config], held_out: tuple[str, ...]) -> Config:
    """Small packs, of which there are more than ranks, and not a multiple of them."""
    packs = ("rows_per_pack=256", "tokens_per_pack=192", "bag_tokens_per_pack=128", "max_sample_rows=64")
    packs += ("sequences_per_pack=64", "packs_per_step=4")
    return make_config(*held_out, "modality.image.per_pack=48", *(f"data.{key}" for key in packs))


@pytest.fixture
def documents(validated: Config, unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[list[Sample]]:
    """Held-out documents of all tasks."""
    config = dataclasses.replace(validated, validation=dataclasses.replace(validated.validation, samples=200))
    with unchecked():
        yield [x for source in load_mixture(config.validation.mixture) for x in draw_documents(config, source)]


def looked_at(documents: list[Sample], config: Config) -> list[list[NoisySample]]:
    """All documents in each bin of time."""
    count = len(documents)
    process = process_of(config, eos=0, mark=0)
    return [[look_at(x, number, i, count, process) for i, x in enumerate(documents)] for number in range(BINS)]


def missing_share(sample: Sample, noisy: NoisySample) -> float:
    """Of what can be missing."""
    return (len(sample.tokens) - len(noisy.tokens)) / max(1, int(is_deletable(sample).sum()))


def measure(path: str, *overrides: str) -> dict[str, float]:
    """The losses of noisy weights and of their average, on the ranks there are."""
    config = load_config(path, list(overrides))
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, CPU)
    add_noise(model)
    ema = MovingAverage(model, 0.5)
    with torch.no_grad():
        for tensor in ema.tensors.values():
            tensor *= 0.5
    found = Validation(config, *data_rank(mesh, config.parallel.context), model, CPU).measure(model, ema)
    found.pop("validation/seconds")
    return found


@pytest.fixture(scope="module")
def path(validated: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("validation") / "config.toml"
    path.write_text(write_config(validated))
    return str(path)


@pytest.fixture(scope="module")
def alone(launcher: Launcher, path: str) -> dict[str, float]:
    (found,) = launcher.call(1, measure, path)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("num_ranks", "overrides"), [(2, ()), (4, ()), (4, ("parallel.replicate=2",)), (2, ("data.workers=3",))]
)
def test_data_ranks_and_workers_change_no_bit(
    num_ranks: int, overrides: tuple[str, ...], launcher: Launcher, path: str, alone: dict[str, float]
) -> None:
    assert launcher.call(num_ranks, measure, path, *overrides) == [alone] * num_ranks


@pytest.mark.parametrize("axis", ["tensor", "context"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_that_share_packs_add_in_another_order(
    num_ranks: int, axis: str, launcher: Launcher, path: str, alone: dict[str, float]
) -> None:
    first, *others = launcher.call(num_ranks, measure, path, f"parallel.{axis}=2")
    assert others == [first] * (num_ranks - 1)
    assert first == pytest.approx(alone, rel=2e-6)


def test_a_source_has_losses_by_time_missing_share_and_modality(alone: dict[str, float]) -> None:
    text = ["text", *(f"text/time_{n}" for n in range(4)), *(f"text/missing_{n}" for n in range(5))]
    names = ["loss", *text, "velocity_image", *(f"velocity_image/time_{n}" for n in range(4))]
    sets = [f"{kind}/{source}" for kind in ("validation", "validation_ema") for source in ("single", "count")]
    assert list(alone) == [f"{prefix}/{name}" for prefix in sets for name in names]
    assert all(0.0 < value < 1e4 for value in alone.values())
    for prefix in sets:
        whole = alone[f"{prefix}/text"] + alone[f"{prefix}/velocity_image"]
        assert alone[f"{prefix}/loss"] == pytest.approx(whole, rel=1e-12)
    assert alone["validation/single/loss"] != alone["validation_ema/single/loss"]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_the_bins_together_are_the_loss_of_training(
    normalize: str, validated: Config, make_model: Callable[..., OneFlow]
) -> None:
    config = dataclasses.replace(validated, flow=dataclasses.replace(validated.flow, normalize=normalize))
    model = make_model(config)
    validation = Validation(config, 0, 1, model, CPU)
    found = validation.losses(model)
    for source in ("single", "count"):
        packs = [validation.packs[n] for n, group in enumerate(validation.groups) if group.source == source]
        counts = sum((batch.counts for batch in packs), Counts.zeros())
        with torch.no_grad():
            totals = [compute_losses(model(batch), batch, counts, config).total for batch in packs]
        assert found[f"{source}/loss"] == pytest.approx(float(torch.stack(totals).double().sum()), rel=1e-5)


def test_every_document_is_looked_at_once_in_each_bin(documents: list[Sample], validated: Config) -> None:
    for time_bin, noisy in enumerate(looked_at(documents, validated)):
        assert [x.key for x in noisy] == [x.key for x in documents]
        strata = []
        for number, (sample, own) in enumerate(zip(documents, noisy, strict=True)):
            low = (time_bin + number / len(documents)) / BINS
            if sample.is_interleaved:
                low *= 2.0
            elif not is_deletable(sample).any():
                assert own.text_time == 1.0
                continue
            strata.append(own.text_time)
            width = (2.0 if sample.is_interleaved else 1.0) / BINS / len(documents)
            assert min(1.0, low) <= own.text_time <= min(1.0, low + width)
        assert len(strata) > 100


def test_independent_pieces_come_into_each_bin_once_too(documents: list[Sample], validated: Config) -> None:
    counts: dict[str, Counter[int]] = {}
    for noisy in looked_at(documents, validated):
        for sample, own in zip(documents, noisy, strict=True):
            for time in own.pieces[0].pieces.time[own.pieces[0].is_moving]:
                if not sample.is_interleaved:
                    counts.setdefault(sample.key, Counter())[int(time * BINS)] += 1
    assert len(counts) > 20
    assert all(count == dict.fromkeys(range(BINS), 1) for count in counts.values())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_missing_share_of_a_bin_is_that_of_the_schedule(
    schedule: str, documents: list[Sample], validated: Config
) -> None:
    """E share = 1 - mean of kappa over the bin."""
    config = dataclasses.replace(validated, flow=dataclasses.replace(validated.flow, keep_schedule=schedule))
    texts = [x for x in documents if not x.is_interleaved and is_deletable(x).any()] * 3
    for time_bin, noisy in enumerate(looked_at(texts, config)):
        shares = [missing_share(s, x) for x, s in zip(noisy, texts, strict=True)]
        times = (time_bin + (np.arange(1000) + 0.5) / 1000) / BINS
        kappa = times if schedule == "linear" else 1.0 - np.cos(0.5 * np.pi * times)
        assert np.mean(shares) == pytest.approx(1.0 - kappa.mean(), abs=0.05)


def test_noise_knows_neither_seed_nor_how_training_noises(documents: list[Sample], validated: Config) -> None:
    dropout = {"condition_dropout_prob": 0.5, "prompt_dropout_prob": 0.5}
    other = dataclasses.replace(
        validated,
        run=dataclasses.replace(validated.run, seed=7),
        flow=dataclasses.replace(validated.flow, bags="averaged", **dropout),
    )
    for one, two in zip(*(looked_at(documents[:20], config) for config in (validated, other)), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_equal(dataclasses.asdict(a), dataclasses.asdict(b))


def test_a_group_says_how_much_of_the_text_is_missing(documents: list[Sample], validated: Config) -> None:
    for noisy in looked_at(documents[:50], validated):
        for sample, own in zip(documents, noisy, strict=False):
            group = group_of("a", sample, own)
            share = missing_share(sample, own)
            assert (share == 0.0) == (group.missing == 0)
            if share:
                assert group.missing - 1 <= share * BINS <= group.missing
            assert group.time == min(BINS - 1, int(BINS * own.text_time))


@pytest.fixture(scope="module")
def measured(
    launcher: Launcher,
    train_command: Callable[..., list[str]],
    held_out: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """configs/debug.toml with held-out losses."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    end = launcher.run(*train_command(folder, *held_out))
    assert end.code == 0, end.stderr
    return folder


def split_lines(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of steps, and those of held-out losses, without timings."""
    lines = without_timings(read_metrics(folder))
    return [line for line in lines if "loss" in line], [line for line in lines if "loss" not in line]


def test_training_is_the_same_bits_with_held_out_losses(measured: Path, unbroken: Run, tmp_path: Path) -> None:
    steps, evaluations = split_lines(measured)
    assert steps == split_lines(unbroken.folder)[0]
    assert [line["step"] for line in evaluations] == [5, 10, 15, 20]
    assert evaluations[-1]["validation/single/loss"] < evaluations[0]["validation/single/loss"]
    name = "checkpoints/step-00000020"
    own, theirs = (read_checkpoint(folder / name, tmp_path / "state.pt") for folder in (measured, unbroken.folder))
    assert all(torch.equal(value, theirs[key]) for key, value in own.items() if isinstance(value, torch.Tensor))


def test_a_killed_run_measures_the_same_bits(
    measured: Path,
    launcher: Launcher,
    train_command: Callable[..., list[str]],
    held_out: tuple[str, ...],
    tmp_path: Path,
) -> None:
    command = train_command(tmp_path / "run", *held_out, "data.workers=3")
    job = launcher.start(*command)
    wait_for_step(tmp_path / "run", 14)  # two of these lines are of held-out losses
    job.kill()
    assert job.wait()[0].code == -signal.SIGKILL
    again = launcher.run(*command)
    assert again.code == 0, again.stderr
    assert f"{tmp_path}/run/checkpoints/step-00000010" in again.stdout
    assert split_lines(tmp_path / "run") == split_lines(measured)


def test_sources_without_a_document_are_refused(
    validated: Config, make_model: Callable[..., OneFlow], digits: Path, tmp_path: Path
) -> None:
    text = (digits / "heldout.yaml").read_text().replace("weight: 1,", "weight: 1, max_images: 0,")
    (tmp_path / "none.yaml").write_text(text)
    config = dataclasses.replace(
        validated, validation=dataclasses.replace(validated.validation, mixture=str(tmp_path / "none.yaml"))
    )
    with pytest.raises(ValueError, match=naming("validation.mixture", tmp_path / "none.yaml", "single")):
        Validation(config, 0, 1, make_model(config), CPU)
