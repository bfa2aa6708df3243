"""Run folders for tests, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.config import load_config, write_config
from tests.launching import ROOT


def step_line(step: int, **values: Any) -> dict[str, Any]:
    """What a step reports."""
    parts = {"loss/zero": 0.5, "loss/bag": 1.0, "loss/velocity_image": 2.0 / step}
    counts = {"samples": 100, "padding": 0.0, "seconds": 0.5, "tokens_per_second": 1000.0, "tflops_per_second": 2.0}
    return {"step": step, "loss": 1.5 + 2.0 / step, **parts, "grad_norm": 1.0, "lr": 1e-3, **counts, **values}


def held_out_line(step: int, sources: tuple[str, ...] = ("notes", "pairs")) -> dict[str, Any]:
    """What a validation reports."""
    values: dict[str, Any] = {"step": step}
    for kind in ("validation", "validation_ema"):
        for source in sources:
            keys = ["loss", "text", *(f"text/time_{n}" for n in range(4)), "text/missing_0", "text/missing_3"]
            keys += ["velocity_image", "velocity_image/time_0"] if source == "pairs" else []
            values |= {f"{kind}/{source}/{key}": 1.0 + 1.0 / step for key in keys}
    return {**values, "validation/seconds": 3.0}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """As JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder: Path, *overrides: str, steps: int = 12, every_steps: int = 4) -> Path:
    """A run of `steps` steps, with held-out losses every so many; its config is configs/quickstart.toml, changed."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(step_line(step))
        if every_steps and step % every_steps == 0:
            lines.append(held_out_line(step))
    write_lines(folder / "metrics.jsonl", lines)
    config = load_config(ROOT / "configs/quickstart.toml", [f"run.folder={folder}", f"train.steps={steps}", *overrides])
    (folder / "config.toml").write_text(write_config(config))
    return folder


def write_attempt(run: Path, number: int, message: str = "", launch: str = "job-7", **table: str) -> Path:
    """One start of launch/, with the verdict of rank 0 if its state is one."""
    folder = run / "launches" / launch / f"attempt-{number}"
    folder.mkdir(parents=True)
    began = f"2030-01-01 0{number}:00:00 +0000"
    fixed = {"command": "launch/torchrun.sh c.toml", "host": "node1", "began": began, "commit": "abc123"}
    (folder / "attempt.json").write_text(json.dumps({**fixed, "torch": "2.13.0", "python": "3.11.7", **table}))
    if message:
        (folder / "verdict-0.json").write_text(json.dumps({"state": table["state"], "message": message}))
    return folder


def write_samples(run: Path, *steps: int) -> None:
    """A small picture for each step."""
    (run / "samples").mkdir()
    for step in steps:
        Image.new("RGB", (4, 4), (step % 256, 0, 0)).save(run / f"samples/step-{step:08d}.png")
