"""What a run reports while it goes: one JSON line per step and evaluation, a progress bar, TensorBoard and W&B."""

from __future__ import annotations

import fcntl
import json
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
import torch.distributed as dist

from oneflow_dist.bars import bar
from oneflow_dist.config import Config, write_config
from oneflow_dist.containers import Counts, StepMetrics
from oneflow_dist.files import naming, write_whole
from oneflow_dist.modality import Modalities
from oneflow_dist.runtime import log

WATCHED_STEPS, MOST_PADDING = 20, 0.05


class MetricsLog:
    """The sinks of rank 0; on other ranks every method does nothing."""

    def __init__(self, config: Config, first_step: int, is_main: bool):
        """Continue the log after `first_step` steps; later lines of an earlier try are cut off."""
        self.is_main = is_main
        if not is_main:
            return
        folder = Path(config.run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = open_alone(folder / "metrics.jsonl")
        _cut_after(self._lines, first_step)
        write_whole(folder / "config.toml", write_config(config).encode())
        self._tensorboard = _open_tensorboard(folder, first_step) if config.metrics.tensorboard else None
        self._wandb = open_wandb(config, folder) if config.metrics.wandb != "off" else None
        self._bar = bar(total=config.train.steps, initial=first_step, unit="step")
        self._config_path = folder / "config.toml"
        self._paddings: list[float] = []  # of the first steps of this process
        self._saved = math.nan  # when the last checkpoint of this process was

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(has_failed=error is not None)

    def close(self, has_failed: bool = False) -> None:
        """Flush and close all sinks, whatever ended the run."""
        if not self.is_main:
            return
        self._bar.close()
        with naming(self._lines.name):
            self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(has_failed))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One step's values to every sink, and to the progress bar."""
        if not self.is_main:
            return
        self.add(step, values)
        self._bar.set_postfix_str(describe_step_values(values, time.monotonic() - self._saved), refresh=False)
        self._bar.update(step - self._bar.n)
        if len(self._paddings) < WATCHED_STEPS:
            self._watch_padding(values["padding"])

    def _watch_padding(self, share: float) -> None:
        """Tell, after the first steps, that packs are not full: a row that nothing fills costs what others do."""
        self._paddings.append(share)
        mean = sum(self._paddings) / WATCHED_STEPS
        if len(self._paddings) == WATCHED_STEPS and mean > MOST_PADDING:
            log(
                f"{mean:.0%} of the rows of these {WATCHED_STEPS} steps are padding; "
                f"oneflow inspect {self._config_path} --suggest tells of packs that are fuller"
            )

    def note_checkpoint(self) -> None:
        """One is being written."""
        self._saved = time.monotonic()

    def add(self, step: int, values: dict[str, Any]) -> None:
        """A line of its own, with other values of the step."""
        if not self.is_main:
            return
        line = {name: None if _is_broken(value) else value for name, value in values.items()}
        with naming(self._lines.name):
            self._lines.write(json.dumps({"step": step, **line}) + "\n")
            self._lines.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def add_image(self, step: int, path: Path) -> None:
        """A picture of samples to the sinks that show pictures."""
        if self.is_main and self._wandb is not None:
            import wandb

            self._wandb.log({"samples": wandb.Image(str(path))}, step=step)
        if self.is_main and self._tensorboard is not None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                self._tensorboard.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")


@contextmanager
def profiled(config: Config, step: int) -> Iterator[None]:
    """Inside, record what every rank does if this is `metrics.profile_step`; <run>/traces is for ui.perfetto.dev."""
    if step != config.metrics.profile_step:
        yield
        return
    with torch.profiler.profile(record_shapes=True) as profiler:
        yield
    folder = Path(config.run.folder) / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"step-{step:08d}-rank-{dist.get_rank()}.json.gz"))


def step_values(
    metrics: StepMetrics, modalities: Modalities, lr: float, seconds: float, waited: float, flops: float
) -> dict[str, float | str]:
    """The line of one step, by its name in metrics.jsonl; "skipped" where the weights were left alone.

    Args:
        seconds: of the step.
        waited: seconds in which the loop had no data for it.
    """
    counts = metrics.counts
    pieces = [n / own.num_rows for n, own in zip(counts.patches, modalities.values(), strict=True)]  # of their shape
    losses = {f"loss/{name}": loss.item() for name, loss in metrics.losses.named(modalities).items()}
    skipped = {"skipped": metrics.skipped} if metrics.skipped else {}
    return {
        "loss": losses.pop("loss/total"),
        **losses,
        "grad_norm": metrics.grad_norm,
        "lr": lr,
        "samples": counts.sequences,
        "text_tokens": counts.text_tokens,
        "bag_tokens": counts.bag_tokens,
        "padding": padding(counts),
        "seconds": seconds,
        "data_wait": waited,
        "tokens_per_second": counts.rows / seconds,
        "images_per_second": sum(pieces) / seconds,
        "tflops_per_second": flops / seconds / 1e12,
        **skipped,
    }


def describe_step_values(values: dict[str, Any], age: float) -> str:
    """What the bar says of a step: loss, speed, the share of its time in which it waited for data, then losses by part.

    A narrow terminal cuts the end off.

    Args:
        age: seconds since the last checkpoint; NaN: there is none.
    """
    found = [f"loss {values['loss']:.3f}", f"{values['tokens_per_second']:.0f} tokens/s"]
    found += [f"{values['images_per_second']:.0f} images/s", f"data {values['data_wait'] / values['seconds']:.0%}"]
    if not math.isnan(age):
        found.append(f"saved {f'{age:.0f} s' if age < 120.0 else f'{age / 60.0:.0f} min'} ago")
    parts = {name.removeprefix("loss/"): value for name, value in values.items() if name.startswith("loss/")}
    return ", ".join(found + [f"{name.removeprefix('velocity_')} {value:.2f}" for name, value in parts.items()])


def padding(counts: Counts) -> float:
    """The share of trunk rows that no sample fills."""
    return 1.0 - counts.rows / counts.padded_rows


def _is_broken(value: float | str) -> bool:
    """Whether JSON has no number for it; there it is null."""
    return isinstance(value, float) and not math.isfinite(value)


def open_alone(path: Path) -> TextIO:
    """Open for appending what no other run writes to; so a run has its folder to itself for as long as it lives."""
    file = path.open("a+", encoding="utf-8", errors="surrogateescape")  # damage is found by the line, not by the byte
    try:  # this lock is not inherited by data workers, who end a moment after a killed run
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(
            f"{path.parent}: another process is running here; wait for it, end it, or name another"
        ) from error
    return file


def _cut_after(file: TextIO, step: int) -> None:
    """Keep the lines up to `step`; a half-written last line goes too.

    Raises:
        ValueError: a line is damaged. Nothing has been cut then.
    """
    file.seek(0)
    num_kept, lines = 0, file.read().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            is_later = not line.endswith("\n") or json.loads(line)["step"] > step
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{file.name}, line {number}: damaged ({line[:40]!r}); remove that line, or move the file away: the "
                "run goes on without it"
            ) from error
        if is_later:
            break
        num_kept += len(line.encode("utf-8", "surrogateescape"))
    if step == 0 and lines:
        log(f"{file.name}: the {len(lines)} lines of an earlier try ended before a checkpoint; they are made again")
    file.truncate(num_kept)


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)


def open_wandb(config: Config, folder: Path) -> Any:
    """The run of this folder, or more of it: folders of one name are different runs.

    Raises:
        ValueError: W&B does not want it.
    """
    import dataclasses

    import wandb

    id_file, metrics = folder / "wandb-id", config.metrics
    if not id_file.exists():
        write_whole(id_file, secrets.token_hex(4).encode())
    try:
        return wandb.init(
            project=metrics.wandb_project,
            entity=metrics.wandb_entity or None,
            tags=metrics.wandb_tags,
            name=folder.resolve().name,
            id=id_file.read_text().strip(),
            resume="allow" if metrics.wandb == "online" else None,  # offline there is nothing to look it up in
            dir=folder,
            mode=metrics.wandb,  # type: ignore[arg-type]
            config=dataclasses.asdict(config),
        )
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")  # some of its messages have several lines
        raise ValueError(f"metrics.wandb: {reason}; run `wandb login`, or set metrics.wandb=offline or off") from error
