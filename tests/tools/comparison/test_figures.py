from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.comparison.made_up import plan, score, write_run
from tools.comparison.figures import FIGURES, read_run
from tools.comparison.plan import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(plan(tmp_path, steps=8)[0])


def test_a_finished_run_is_read(run: Run) -> None:
    reading = read_run(run, 0.25)
    assert reading.seconds == 0.25 * run.steps
    assert reading.flops == pytest.approx(0.01e12 * run.steps)
    assert reading.num_parameters == 1234
    assert set(reading.values) == {figure.key for figure in FIGURES}
    assert reading.values["velocity"] == 0.25  # of the average, and not of times or texts
    assert reading.values["bits"] == 1.25
    assert reading.details["bits_errors"] == {"single": 0.012}
    for figure in FIGURES:
        if "/" in figure.key:
            assert reading.values[figure.key] == score(figure, run, 1.0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.json", "bound.txt"])
@pytest.mark.parametrize("content", [None, "", '{"step": '])
def test_a_file_that_is_missing_or_damaged_is_named(name: str, content: str | None, run: Run) -> None:
    path = run.folder / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert names(refused(read_run, run, 0.25), path)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"num_parameters": 3, "interleaved": 1}'])
def test_a_report_without_a_figure_is_named(content: str, run: Run) -> None:
    path = run.folder / "report.json"
    path.write_text(content)
    assert names(refused(read_run, run, 0.25), path)


@pytest.mark.parametrize(
    "text", ["count: has no task image_to_text", "single: at most ? bits a token, error 0; 2 texts"]
)
def test_a_bound_without_bits_is_named(text: str, run: Run) -> None:
    path = run.folder / "bound.txt"
    path.write_text(text)
    assert names(refused(read_run, run, 0.25), path)


def test_a_run_of_fewer_steps_is_refused(run: Run) -> None:
    path = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"step": min(line["step"], run.steps - 1)}) + "\n" for line in lines))
    assert names(refused(read_run, run, 0.25), path, run.steps)


@pytest.mark.parametrize("key", ["tflops_per_second", "validation_ema/count/velocity_image"])
def test_broken_numbers_are_refused(key: str, run: Run) -> None:
    path = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | ({key: None} if key in line else {})) + "\n" for line in lines))
    assert names(refused(read_run, run, 0.25), path)
