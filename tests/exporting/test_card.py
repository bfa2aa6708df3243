"""The card of an exported model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.exporting.card import Facts, write_card

SOURCES = {
    "birds": {"samples": 1234, "weight": 0.75, "sha256": 64 * "a"},
    "words": {"samples": 9, "weight": 0.25, "sha256": 64 * "b"},
}
MADE_BY = {"name": "vae", "weights_sha256": 64 * "c"}
ORIGIN = {
    "oneflow_dist": "0.1.0",
    "step": 700,
    "weights": "ema",
    "data": {"sources": SOURCES},
    "autoencoders": {"image": MADE_BY},
}


def facts(config: Config, **changes: object) -> Facts:
    known = {"name": "birds", "config": config, "origin": ORIGIN, "num_parameters": 123_456, "format": "transformers"}
    return Facts(**{**known, "licence": "CC-BY-4.0", "about": "Forty kinds of birds.", **changes})  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    for step, shade in ((10, 0), (700, 255)):
        with Image.new("L", (4, 4), shade) as picture:
            picture.save(folder / f"samples/step-{step:08d}.png")
    return folder


def card_of(folder: Path, told: Facts, run: Path) -> str:
    folder.mkdir(exist_ok=True)
    write_card(folder, told, run)
    return (folder / "README.md").read_text()


def test_it_tells_what_it_was_made_of_and_how_to_use_it(config: Config, run: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path / "birds", facts(config), run)
    for said in (
        "Forty kinds of birds.",
        "123,456",
        "700 steps",
        "1,234",
        "75%",
        64 * "c",
        "CC-BY-4.0",
        "trust_remote_code",
    ):
        assert said in card
    assert "oneflow sample birds out" in card
    assert card.index("Forty kinds") < card.index("## Use") < card.index("## Training data")


def test_hubs_can_read_its_head(config: Config, run: Path, tmp_path: Path) -> None:
    head = card_of(tmp_path / "birds", facts(config), run).split("---\n")[1]
    table = yaml.safe_load(head)
    assert (table["library_name"], table["license"]) == ("transformers", "cc-by-4.0")
    plain = card_of(tmp_path / "plain", facts(config, format="oneflow", licence=""), run)
    assert yaml.safe_load(plain.split("---\n")[1])["library_name"] == "oneflow_dist"
    assert "trust_remote_code" not in plain


def test_the_newest_samples_are_its_picture_and_a_gallery_comes_before_them(
    config: Config, run: Path, tmp_path: Path
) -> None:
    card_of(tmp_path / "birds", facts(config), run)
    with Image.open(tmp_path / "birds/samples.png") as picture:
        assert picture.getpixel((0, 0)) == 255
    with Image.new("L", (4, 4), 77) as gallery:
        gallery.save(run / "gallery.png")
    card_of(tmp_path / "birds", facts(config), run)
    with Image.open(tmp_path / "birds/samples.png") as picture:
        assert picture.getpixel((0, 0)) == 77


def test_a_run_without_pictures_or_reports_has_a_card_without_them(config: Config, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    card = card_of(tmp_path / "birds", facts(config), tmp_path / "bare")
    assert "samples.png" not in card
    assert "Measured" not in card
    assert not (tmp_path / "birds/samples.png").exists()


def test_figures_of_evaluations_are_there_with_their_intervals_of_each_suite_the_newest(
    config: Config, run: Path, tmp_path: Path
) -> None:
    (run / "report.json").write_text(json.dumps({"steps": 660, "single": {"agreement": 0.98765}}))
    for step, value in ((10, 0.1), (700, 0.5)):
        path = run / f"evaluation/zoo/step-{step:08d}/report.json"
        path.parent.mkdir(parents=True)
        figure = {"value": value, "low": 0.41, "high": 0.59}
        path.write_text(
            json.dumps({"protocol": {"step": step}, "tasks": {"naming": {"figures": {"recall_1": figure}}}})
        )
    card = card_of(tmp_path / "birds", facts(config), run)
    assert "| single agreement | 0.9877 |" in card
    assert "| naming recall_1 | 0.5 [0.410, 0.590] |" in card
    assert "step-00000010" not in card
