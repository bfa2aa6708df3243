from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from tests.launching import Launcher
from tests.tools.styles.conftest import SMALL
from tools.digits.judging import Writer
from tools.experiments.probes import lengths
from tools.experiments.reading import Probe
from tools.experiments.rows import Subject
from tools.styles.lengths import write_captions

VARIANTS = ("rate_alone", "truncated", "fixed_count", "reversed", "rare_first", "by_loss")


@pytest.fixture(autouse=True)
def _few_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "NUM_DATA", 200)


def measure(folder: Path, seed: int = 0) -> dict[tuple[str, float | None, str], float]:
    """Of twelve captions in two ways and two numbers of steps."""
    ways = {"as it is": (), "clock": ("sampling.clock_share=1",)}
    probe = Probe(kind="lengths", title="", documents=12, vary="sampling.steps", values=(2, 3), ways=ways)
    subject = Subject(experiment=None, arm="timeless", seed=seed, folder=folder)  # type: ignore[arg-type]
    return {(row.way, row.x, row.figure): row.value for row in lengths.measure(subject, probe)}


def test_every_way_and_number_of_steps_has_its_figures(runs: Path) -> None:
    found = measure(runs / "timeless")
    assert len(found) == 2 * 2 * 3
    assert {way for way, _, _ in found} == {"as it is", "clock"}
    assert {x for _, x, _ in found} == {2, 3}
    for (_, _, figure), value in found.items():
        assert 0.0 <= value <= (24.0 if figure == "mean_length" else 1.0)
    assert measure(runs / "timeless") == found
    assert measure(runs / "timeless", seed=1) != found


def test_captions_of_the_data_are_sentences_of_the_right_lengths(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In place of the model the grammar writes."""

    def write(self: Writer, name: str, prompts: list[Prompt], seed: int) -> list[Canvas]:
        tokens = [self.tokenizer.encode(caption) for caption in write_captions(200)]
        return [blank_canvas(caption, self.tokenizer, self.config.modality, 0, n) for n, caption in enumerate(tokens)]

    monkeypatch.setattr(Writer, "write", write)
    found = measure(runs / "timeless")
    assert found["as it is", 2, "sentences"] == 1.0
    assert found["as it is", 2, "length_tv"] == 0.0
    assert found["as it is", 2, "mean_length"] == pytest.approx(4.3, abs=0.4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(
    variant: str,
    styled: Path,
    launcher: Launcher,
    tmp_path: Path,
    root: Path,
) -> None:
    own = [f"run.folder={tmp_path}/run", f"data.mixture={styled}/text_only.yaml", "train.steps=2"]
    own += [f"data.tokenizer={styled}/words.tiktoken", "heads.time_conditioning=none", "checkpoint.every_steps=2"]
    end = launcher.run("-m", "tools.experiments.varied", variant, root / "configs/styles.toml", *SMALL, *own)
    assert end.code == 0, end.stderr
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(step["loss"]) for step in losses)
    assert (losses[-1]["loss/zero"] == 0.0) == (variant == "rate_alone")
