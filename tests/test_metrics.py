from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts, Losses, StepMetrics
from oneflow_dist.metrics import (
    WATCHED_STEPS,
    MetricsLog,
    describe_step_values,
    open_wandb,
    padding,
    profiled,
    step_values,
)
from tests.launching import Launcher, read_metrics
from tests.messages import names, naming
from tests.pieces import modality

VALUES = {"loss": 1.5, "loss/bag": 0.25, "seconds": 0.5, "data_wait": 0.25, "padding": 0.0}
VALUES |= {"tokens_per_second": 1000.0, "images_per_second": 20.0}


@pytest.fixture
def run_config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    return make_config(f"run.folder={tmp_path / 'run'}", "train.steps=9", "metrics.tensorboard=false")


@contextmanager
def opened(config: Config, first_step: int = 0, is_main: bool = True) -> Iterator[MetricsLog]:
    metrics_log = MetricsLog(config, first_step, is_main)
    yield metrics_log
    metrics_log.close()


def lines_of(config: Config) -> list[dict[str, Any]]:
    return read_metrics(Path(config.run.folder))


def test_every_step_is_one_line_that_is_there_at_once(run_config: Config) -> None:
    with opened(run_config) as metrics_log:
        for step in (1, 2, 3):
            metrics_log.write(step, {**VALUES, "loss": step / 3})
            assert lines_of(run_config)[-1] == {"step": step, **VALUES, "loss": step / 3}  # floats come back bitwise
    assert [line["step"] for line in lines_of(run_config)] == [1, 2, 3]


def test_other_values_of_a_step_are_a_line_of_their_own_and_no_step(run_config: Config) -> None:
    config = replace(run_config, metrics=replace(run_config.metrics, tensorboard=True))
    with opened(config) as metrics_log:
        metrics_log.write(1, VALUES)
        metrics_log.add(1, {"validation/text": 0.5})
        assert metrics_log._bar.n == 1
    assert lines_of(config) == [{"step": 1, **VALUES}, {"step": 1, "validation/text": 0.5}]
    events = EventAccumulator(str(Path(config.run.folder) / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation/text")] == [(1, 0.5)]


def test_the_run_folder_gets_the_config(run_config: Config) -> None:
    with opened(run_config):
        assert load_config(Path(run_config.run.folder) / "config.toml") == run_config


@pytest.mark.parametrize("first_step", [0, 2, 5, 7])
def test_lines_after_the_checkpoint_are_cut_off(run_config: Config, first_step: int) -> None:
    with opened(run_config) as metrics_log:
        for step in range(1, 6):
            metrics_log.write(step, VALUES)
    with opened(run_config, first_step):
        pass
    assert [line["step"] for line in lines_of(run_config)] == list(range(1, min(first_step, 5) + 1))
    assert sorted(path.name for path in Path(run_config.run.folder).iterdir()) == ["config.toml", "metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_half_written_last_line_is_cut_off(run_config: Config, cut: int) -> None:
    with opened(run_config) as metrics_log:
        for step in (1, 2):
            metrics_log.write(step, VALUES)
    path = Path(run_config.run.folder) / "metrics.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:cut])  # at -1 all but the line's end
    with opened(run_config, 2) as metrics_log:
        assert path.read_text() == first
        metrics_log.write(3, VALUES)
    assert [line["step"] for line in lines_of(run_config)] == [1, 3]


def test_other_ranks_write_nothing(run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(run_config, metrics=replace(run_config.metrics, tensorboard=True, wandb="offline"))
    with opened(config, is_main=False) as metrics_log:
        metrics_log.write(1, VALUES)
        metrics_log.add_image(1, tmp_path / "no-such.png")
    assert not Path(run_config.run.folder).exists()
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_goes_to_stderr(run_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(run_config, first_step=6) as metrics_log:
        metrics_log.write(7, VALUES)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6/9" in err
    assert names(err.splitlines()[-1], "7/9", "1.500", 1000)


def test_tensorboard_shows_every_value_and_picture_and_forgets_what_was_cut_off(run_config: Config) -> None:
    config = replace(run_config, metrics=replace(run_config.metrics, tensorboard=True))
    picture = Path(config.run.folder) / "page.png"
    with opened(config) as metrics_log:
        for step in (1, 2, 3):
            metrics_log.write(step, {**VALUES, "loss": 10.0 * step})
        Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(picture)
        metrics_log.add_image(2, picture)
    with opened(config, first_step=2) as metrics_log:
        metrics_log.write(3, {**VALUES, "loss": 7.0})
    events = EventAccumulator(str(Path(config.run.folder) / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(VALUES)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 10.0), (2, 20.0), (3, 7.0)]
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (2, 6, 4)


def test_wandb_offline_records_a_run_without_a_network(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = ["train.steps=2", "sampling.every_steps=2", "sampling.steps=2", "metrics.wandb=offline"]
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    home = {"HOME": str(tmp_path), "WANDB_API_KEY": ""}
    end = launcher.run(*train_command(folder, *overrides), env={**nowhere, **home})
    assert end.code == 0, end.stderr
    assert "Traceback" not in end.stderr
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    written = record.read_bytes()
    assert all(name.encode() in written for name in read_metrics(folder)[0] if name != "step")
    (picture,) = folder.glob("wandb/offline-run-*/files/media/images/*.png")
    assert picture.read_bytes() == (folder / "samples/step-00000002.png").read_bytes()


class WandbOnPaper:
    """In the place of `wandb.init` and of the runs that it opens: what it was asked, and how each run ended."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def __call__(self, **settings: Any) -> WandbOnPaper:
        self.asked.append(settings)
        return self

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> WandbOnPaper:
    paper = WandbOnPaper()
    monkeypatch.setattr("wandb.init", paper)
    return paper


def test_a_folder_goes_on_as_its_own_run_of_wandb(
    make_config: Callable[..., Config], on_paper: WandbOnPaper, tmp_path: Path
) -> None:
    keys = ("metrics.wandb_project=mine", "metrics.wandb_entity=us", 'metrics.wandb_tags=["a", "b"]')
    for folder in ("x/base", "y/base", "x/base"):
        run = (f"run.folder={tmp_path / folder}", "metrics.wandb=online", "metrics.tensorboard=false")
        with MetricsLog(make_config(*run, *keys), 0, True):
            pass
    first, other, again = on_paper.asked
    assert first == again
    assert first["id"] != other["id"]
    assert (first["name"], other["name"]) == ("base", "base")
    assert (first["project"], first["entity"], first["tags"]) == ("mine", "us", ("a", "b"))


def test_wandb_is_told_whether_a_run_failed(run_config: Config, on_paper: WandbOnPaper) -> None:
    config = replace(run_config, metrics=replace(run_config.metrics, wandb="offline"))
    with MetricsLog(config, 0, True):
        pass
    with pytest.raises(FloatingPointError), MetricsLog(config, 0, True):
        raise FloatingPointError
    assert on_paper.exit_codes == [0, 1]


@pytest.mark.parametrize("key", ["project", "tags"])
def test_what_wandb_does_not_want_is_said_in_one_line(run_config: Config, key: str, tmp_path: Path) -> None:
    unwanted = {"project": {"wandb_project": "a/b"}, "tags": {"wandb_tags": ("x" * 100,)}}[key]
    config = replace(run_config, metrics=replace(run_config.metrics, wandb="offline", **unwanted))
    with pytest.raises(ValueError, match=naming("metrics.wandb", "`wandb login`", "metrics.wandb=offline")) as error:
        open_wandb(config, tmp_path)
    assert "\n" not in str(error.value)


COUNTS = Counts(
    open_slots=10,
    text_sequences=4,
    rows=75,
    padded_rows=100,
    text_tokens=40,
    bag_tokens=20,
    filled_slots=8,
    sequences=5,
    attention_pairs=1200,
    patches=(36, 6),
    moving_elements=(640,),
)


def test_padding_is_the_share_of_rows_without_a_sample() -> None:
    assert padding(COUNTS) == 0.25
    assert padding(replace(COUNTS, rows=100)) == 0.0


def test_values_of_a_step_are_plain_numbers_of_the_whole_step() -> None:
    scalars = {name: torch.tensor(0.5 + n) for n, name in enumerate(("zero", "rate", "bag", "total"))}
    losses = Losses(**scalars, velocity=torch.tensor([7.5, 8.5]))
    metrics = StepMetrics(losses=losses, grad_norm=1.25, counts=COUNTS)
    kinds = {"image": modality(shape=(8, 8), patch=(4, 4)), "sound": modality(shape=(6,), patch=(2,))}
    values = step_values(metrics, kinds, lr=0.1, seconds=0.5, waited=0.125, flops=3e12)
    assert values["loss"] == losses.total
    parts = {name.removeprefix("loss/"): value for name, value in values.items() if name.startswith("loss/")}
    assert parts == {"zero": 0.5, "rate": 1.5, "bag": 2.5, "velocity_image": 7.5, "velocity_sound": 8.5}
    expected = {
        "grad_norm": 1.25,
        "lr": 0.1,
        "samples": 5,
        "text_tokens": 40,
        "bag_tokens": 20,
        "padding": 0.25,
        "seconds": 0.5,
        "data_wait": 0.125,
        "tokens_per_second": 150.0,
        "images_per_second": 2 * (36 / 4 + 6 / 3),
        "tflops_per_second": 6.0,
    }
    assert {name: values[name] for name in expected} == expected
    assert json.loads(json.dumps(values)) == values
    assert all(math.isfinite(value) for value in values.values())


def test_the_bar_says_losses_speed_waiting_and_the_age_of_the_last_checkpoint() -> None:
    values = {"loss": 1.5, "loss/bag": 0.25, "loss/velocity_image": 1.25, "seconds": 2.0, "data_wait": 0.5}
    values |= {"tokens_per_second": 1000.0, "images_per_second": 20.0}
    said = describe_step_values(values, age=31.0)
    parts = ("loss 1.500", "1000 tokens/s", "20 images/s", "data 25%", "31 s ago", "bag 0.25", "image 1.25")
    places = [said.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)  # what a narrow terminal cuts off is the least of it
    assert "90 min ago" in describe_step_values(values, age=5400.0)
    assert "ago" not in describe_step_values(values, age=math.nan)


def test_the_bar_knows_of_a_checkpoint_once_it_is_noted(run_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(run_config) as metrics_log:
        metrics_log.write(1, VALUES)
    assert "ago" not in capsys.readouterr().err
    with opened(run_config) as metrics_log:
        metrics_log.note_checkpoint()
        metrics_log.write(1, VALUES)
    assert "0 s ago" in capsys.readouterr().err


@pytest.mark.usefixtures("group_of_one")
def test_the_profiled_step_leaves_a_trace_of_what_was_computed_and_no_other_does(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(f"run.folder={tmp_path}", "metrics.profile_step=2")
    for step in (1, 2, 3):
        with profiled(config, step):
            torch.ones(3, 5) @ torch.ones(5, 7)
    (path,) = (tmp_path / "traces").iterdir()
    assert path.name == "step-00000002-rank-0.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    (product,) = [event for event in events if event["name"] == "aten::mm"]
    assert product["args"]["Input Dims"] == [[3, 5], [5, 7]]


@pytest.mark.usefixtures("group_of_one")
def test_without_profile_step_no_step_is_traced(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(f"run.folder={tmp_path}")
    for step in (1, 2):
        with profiled(config, step):
            pass
    assert not (tmp_path / "traces").exists()


@pytest.mark.parametrize(("share", "is_told"), [(0.04, False), (0.07, True)])
def test_packs_that_are_not_full_are_told_of_once(
    run_config: Config, share: float, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(run_config) as metrics_log:
        for step in range(1, 3 * WATCHED_STEPS):
            metrics_log.write(step, {**VALUES, "padding": share})
    out = capsys.readouterr().out
    assert out.count("--suggest") == is_told
    assert not is_told or names(out, "7%", f"{run_config.run.folder}/config.toml")
