from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist import validation
from oneflow_dist.reporting import panels
from oneflow_dist.reporting.lines import Curve
from oneflow_dist.reporting.panels import MOST_POINTS, Panel, as_data, list_panels, name_bin, thin
from oneflow_dist.reporting.runs import read_runs
from tests.reporting.made_up import step_line, write_lines, write_run


def panels_of(*folders: Path) -> dict[str, Panel]:
    return {f"{panel.group}: {panel.title}": panel for panel in list_panels(read_runs(folders))}


def steps_of(differences: Sequence[int]) -> list[int]:
    steps: list[int] = np.cumsum(differences).tolist()
    return steps


def test_one_run_has_its_parts_in_one_panel(tmp_path: Path) -> None:
    found = panels_of(write_run(tmp_path / "run"))
    assert [line.label for line in found["Training: loss of text, by part"].lines] == ["zero", "bag"]
    assert [line.key for line in found["Training: loss/velocity_image"].lines] == ["loss/velocity_image"]
    assert found["Training: gradient norm, before clipping"].is_marked
    assert "Speed: tokens per second" in found
    assert "Speed: waiting for data" not in found
    assert "Other values: samples" in found


def test_several_runs_have_a_panel_for_each_part(tmp_path: Path) -> None:
    found = panels_of(*(write_run(tmp_path / name) for name in ("a", "b")))
    assert {f"Training: loss/{part}" for part in ("zero", "bag", "velocity_image")} <= found.keys()
    assert "Training: loss of text, by part" not in found


def test_held_out_losses_have_panels_by_source_and_by_bin(tmp_path: Path) -> None:
    found = panels_of(write_run(tmp_path / "run"))
    held_out = [name for name in found if name.startswith("Held out")]
    assert held_out == [
        "Held out: held-out loss, by source",
        "Held out: notes: by part",
        "Held out: notes: text, by text time",
        "Held out: notes: text, by missing share",
        "Held out: pairs: by part",
        "Held out: pairs: text, by text time",
        "Held out: pairs: text, by missing share",
        "Held out: pairs: velocity of image, by time",
    ]
    lines = found["Held out: notes: text, by missing share"].lines
    assert [(line.label, line.kind) for line in lines] == [
        (label, kind) for kind in ("average", "weights") for label in ("nothing missing", "50 to 75 % missing")
    ]
    assert all(found[name].is_ordered == ("time" in name or "missing" in name) for name in held_out)


def test_bins_are_those_of_validation() -> None:
    assert panels.BINS == validation.BINS
    assert [name_bin(f"text/time_{n}") for n in (0, 3)] == ["0 to 0.25", "0.75 to 1"]
    assert name_bin("text/missing_4") == "75 to 100 % missing"


def test_a_loss_that_an_objective_has_not_is_no_curve(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [step_line(step, **{"loss/zero": 0.0}) for step in (1, 2)])
    found = panels_of(tmp_path)
    assert [line.label for line in found["Training: loss/bag"].lines] == ["bag"]


def test_what_nobody_knew_of_is_shown_by_its_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [step_line(1, warmth=3.0, data_wait=0.5)])
    assert {"Other values: warmth", "Speed: waiting for data"} <= panels_of(tmp_path).keys()


def test_a_figure_of_an_evaluation_has_a_panel(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_lines(folder / "evaluation.jsonl", [{"step": 4, "digits/paint/KID (a/b)": 0.5}])
    assert panels_of(folder)["Evaluation: digits, paint: KID (a/b)"].lines[0].kind == "figure"


def test_the_data_of_a_page_have_the_curves_of_each_run(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=8)])
    listed = list_panels(runs)
    data = as_data(listed, runs)
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    assert data["runs"][1]["axis"] == {
        "s": [1] * 8,
        "seconds": [0.5 * step for step in range(1, 9)],
        "tokens": [500.0 * step for step in range(1, 9)],
    }
    (loss,) = [panel for panel in data["panels"] if panel["title"] == "loss"]
    assert [(curve["run"], steps_of(curve["s"])) for curve in loss["curves"]] == [
        (0, list(range(1, 13))),
        (1, list(range(1, 9))),
    ]
    assert len(data["panels"]) == len(listed)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_skipped_steps_are_marks_on_the_gradient_norm_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [step_line(1), step_line(2, skipped="spike")])
    runs = read_runs([tmp_path])
    marked = [panel for panel in as_data(list_panels(runs), runs)["panels"] if panel["marks"]]
    assert [panel["title"] for panel in marked] == ["gradient norm, before clipping"]
    assert marked[0]["marks"] == [{"run": 0, "step": 2, "text": "spike"}]


@pytest.mark.parametrize("length", [1, 2, MOST_POINTS])
def test_a_short_curve_is_whole(length: int) -> None:
    steps, values = np.arange(10, 10 + length), np.linspace(0.0, 1.0, length)
    table = thin(Curve(steps=steps, values=values))
    assert steps_of(table["s"]) == steps.tolist()
    np.testing.assert_allclose(table["v"], values, atol=1e-5)
    assert "mean" not in table


def test_a_long_curve_keeps_its_spikes_its_ends_and_its_mean() -> None:
    rng = np.random.default_rng(0)
    steps, values = np.arange(1, 100_001), rng.normal(size=100_000)
    values[[777, 50_000]] = 99.0, -99.0
    table = thin(Curve(steps=steps, values=values))
    kept = dict(zip(steps_of(table["s"]), table["v"], strict=True))
    assert len(kept) <= MOST_POINTS
    assert {1, 778, 50_001, 100_000} <= kept.keys()
    assert (kept[778], kept[50_001]) == (99.0, -99.0)
    assert all(value == pytest.approx(values[step - 1], rel=1e-4) for step, value in kept.items())
    assert np.mean(table["mean"]) == pytest.approx(values.mean(), abs=1e-3)
    assert len(table["mean_s"]) == len(table["mean"]) < MOST_POINTS


def test_intervals_go_with_their_points() -> None:
    steps, values = np.array([3, 5]), np.array([1.0, 2.0])
    table = thin(Curve(steps=steps, values=values, low=np.array([np.nan, 1.5]), high=np.array([np.nan, 2.5])))
    assert (table["low"], table["high"]) == ([None, 1.5], [None, 2.5])
