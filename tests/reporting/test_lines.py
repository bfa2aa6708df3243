from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.reporting.lines import read_figures, read_lines
from tests.messages import naming
from tests.reporting.made_up import step_line, write_lines


def test_each_name_is_a_curve_over_the_steps_that_have_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [step_line(1), {"step": 1, "validation/a/loss": 3}, step_line(2, loss=0.25)])
    lines = read_lines(path)
    assert lines.last_step == 2
    assert lines.curves["loss"].steps.tolist() == [1, 2]
    assert lines.curves["loss"].values.tolist() == [3.5, 0.25]
    assert lines.curves["validation/a/loss"].steps.tolist() == [1]
    assert "step" not in lines.curves


def test_what_is_no_number_is_left_out_and_a_skipped_step_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [step_line(1), step_line(2, loss=None, grad_norm=math.nan, skipped="not finite"), step_line(3)])
    lines = read_lines(path)
    assert lines.curves["loss"].steps.tolist() == [1, 3]
    assert lines.curves["grad_norm"].steps.tolist() == [1, 3]
    assert lines.curves["lr"].steps.tolist() == [1, 2, 3]
    assert lines.skipped == [(2, "not finite")]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}'])
def test_a_last_line_that_is_being_written_is_left_out(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [step_line(1), step_line(2)])
    path.write_text(path.read_text() + rest)
    assert read_lines(path).last_step == 2


@pytest.mark.parametrize("damage", ["{", "[1]", '{"loss": 1.0}', '{"step": "soon"}', "", "\udcff"])
def test_a_damaged_line_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = f"{json.dumps(step_line(1))}\n{damage}\n{json.dumps(step_line(3))}\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=naming(path, "line 2")):
        read_lines(path)


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "lo'])
def test_a_file_without_a_line_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=naming(path)):
        read_lines(path)


def write_report(run: Path, step: int, value: float) -> Path:
    path = run / f"evaluation/digits/step-{step:08d}/report.json"
    path.parent.mkdir(parents=True)
    figures = {"agreement": {"value": value, "low": value - 0.1, "high": value + 0.1}}
    path.write_text(json.dumps({"protocol": {"step": step}, "tasks": {"paint": {"figures": figures}}}))
    return path


def test_figures_have_the_intervals_of_their_reports(tmp_path: Path) -> None:
    line = {"digits/paint/agreement": 0.5, "digits/paint/words": 7.0}
    write_lines(tmp_path / "evaluation.jsonl", [{"step": 10, **line}, {"step": 20, **line}])
    write_report(tmp_path, 20, 0.75)
    write_report(tmp_path, 30, 0.875)
    figures = read_figures(tmp_path)
    curve = figures["digits/paint/agreement"]
    assert curve.steps.tolist() == [10, 20, 30]
    assert curve.values.tolist() == [0.5, 0.75, 0.875]
    assert curve.low is not None
    assert curve.high is not None
    np.testing.assert_allclose(curve.low, [np.nan, 0.65, 0.775])
    np.testing.assert_allclose(curve.high, [np.nan, 0.85, 0.975])
    assert figures["digits/paint/words"].steps.tolist() == [10, 20]


def test_a_run_that_was_never_evaluated_has_no_figures(tmp_path: Path) -> None:
    assert read_figures(tmp_path) == {}


def test_a_figure_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    write_report(tmp_path, 10, math.nan)
    assert read_figures(tmp_path) == {}


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    path = write_report(tmp_path, 10, 0.5)
    path.write_text('{"protocol": {}}')
    with pytest.raises(ValueError, match=naming(path)):
        read_figures(tmp_path)
