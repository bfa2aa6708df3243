"""What a run reports while it goes: one JSON line per step, a progress bar, TensorBoard and W&B."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from tqdm import tqdm

from oneflow_dist.config import Config, write_config
from oneflow_dist.containers import Counts, StepMetrics


class MetricsLog:
    """The sinks of rank 0; on other ranks every method does nothing."""

    def __init__(self, config: Config, first_step: int, is_main: bool):
        """Continue the log after `first_step` steps; later lines of an earlier try are cut off."""
        self.is_main = is_main
        if not is_main:
            return
        folder = Path(config.run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = _open_alone(folder / "metrics.jsonl")
        _cut_after(self._lines, first_step)
        (folder / "config.toml").write_text(write_config(config))
        self._tensorboard = _open_tensorboard(folder, first_step) if config.metrics.tensorboard else None
        self._wandb = _open_wandb(config, folder) if config.metrics.wandb != "off" else None
        self._bar = tqdm(
            total=config.train.steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,
        )

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close all sinks, whatever ended the run."""
        if not self.is_main:
            return
        self._bar.close()
        self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One step's values to every sink."""
        if not self.is_main:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {values['tokens_per_second']:.0f} tokens/s", refresh=False
        )
        self._bar.update(step - self._bar.n)

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
def traced(config: Config, step: int) -> Iterator[None]:
    """Inside, record what every rank does if this is `metrics.profile_step`; <run>/traces is for ui.perfetto.dev."""
    if step != config.metrics.profile_step:
        yield
        return
    with torch.profiler.profile(record_shapes=True) as profiler:
        yield
    folder = Path(config.run.folder) / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"step-{step:08d}-rank-{dist.get_rank()}.json.gz"))


def step_values(metrics: StepMetrics, lr: float, seconds: float, flops: float) -> dict[str, float]:
    """The line of one step, by its name in metrics.jsonl."""
    losses, counts = metrics.losses, metrics.counts
    return {
        "loss": losses.total.item(),
        "loss/zero": losses.zero.item(),
        "loss/rate": losses.rate.item(),
        "loss/bag": losses.bag.item(),
        "loss/velocity": losses.velocity.item(),
        "grad_norm": metrics.grad_norm,
        "lr": lr,
        "samples": counts.sequences,
        "text_tokens": counts.text_tokens,
        "bag_tokens": counts.bag_tokens,
        "padding": padding(counts),
        "seconds": seconds,
        "tokens_per_second": counts.rows / seconds,
        "tflops_per_second": flops / seconds / 1e12,
    }


def padding(counts: Counts) -> float:
    """The share of trunk rows that no sample fills."""
    return 1.0 - counts.rows / counts.padded_rows


def _open_alone(path: Path) -> TextIO:
    """Open for appending what no other run writes to; so a run has its folder to itself for as long as it lives."""
    file = path.open("a+")
    try:  # this lock is not inherited by data workers, who may outlive a killed run
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(
            f"{path.parent}: another process is running here; wait for it, end it, or name another"
        ) from error
    return file


def _cut_after(file: TextIO, step: int) -> None:
    """Keep the lines up to `step`; a half-written last line goes too."""
    file.seek(0)
    num_kept = 0
    for line in file.read().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        num_kept += len(line)  # JSON of ours is ASCII: a character is a byte
    file.truncate(num_kept)


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)


def _open_wandb(config: Config, folder: Path) -> Any:
    import dataclasses

    import wandb

    return wandb.init(
        project="oneflow_dist",
        name=folder.name,
        id=folder.name,
        resume="allow",
        dir=folder,
        mode=config.metrics.wandb,  # type: ignore[arg-type]
        config=dataclasses.asdict(config),
    )
