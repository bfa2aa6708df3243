from __future__ import annotations

import base64
import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.reporting import page
from oneflow_dist.reporting.page import choose_pictures, render
from tests.launching import Run
from tests.messages import naming
from tests.reporting.made_up import step_line, write_attempt, write_lines, write_run, write_samples

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the texts inside of each kind."""

    def __init__(self, content: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        self.texts[self.found[-1][0]][-1] += data

    def of(self, kind: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == kind]


def data_of(content: str) -> Any:
    """What page.js reads."""
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', content, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def text_of(content: str) -> str:
    """What people read, without scripts, styles and pictures."""
    visible = re.sub(r"<(script|style).*?</\1>", " ", content, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", visible)).split())


def test_a_run_of_training_is_a_page(unbroken: Run) -> None:
    content = render([unbroken.folder])
    text = text_of(content)
    assert "finished" in text
    assert "20 of 20" in text
    assert "insertion (OneFlow): text and image" in text
    assert "Differences from configs/debug.toml" in text
    assert data_of(content)["refresh"] is None
    (picture,) = list(Elements(content).of("img"))
    assert str(picture["src"]).startswith("data:image/png;base64,")
    encoded = str(picture["src"]).partition(",")[2]
    assert base64.b64decode(encoded) == (unbroken.folder / "samples/step-00000020.png").read_bytes()


def test_a_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    elements = Elements(render([write_run(tmp_path / "run")]))
    for _, attributes in elements.found:
        for key in ("src", "href"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:"))
        assert "style" not in attributes  # a policy may forbid it where it allows the block
        assert not any(key.startswith("on") for key in attributes)
    assert not elements.of("link")
    assert len(elements.of("style")) == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", render([tmp_path / "run"]))


def test_whatever_a_file_says_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", f"sampling.prompts=[{json.dumps(EVIL)}]")
    lines = [step_line(1, **{f"loss/{EVIL}": 1.0, "skipped": EVIL}), {"step": 1, f"validation/{EVIL}/loss": 1.0}]
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "evaluation.jsonl", [{"step": 1, f"{EVIL}/{EVIL}/{EVIL}": 1.0}])
    folder = write_attempt(run, 0, message=EVIL, state="failed", ended=EVIL, host=EVIL, commit=EVIL)
    (folder / "environment.txt").write_text(EVIL)
    (run / "hangs").mkdir()
    (run / "hangs/rank-0.txt").write_text(f'2030-01-01 1:00 <b>node</b>, in "{EVIL}" of step 1\n')
    content = render([run])
    plain = Elements(render([write_run(tmp_path / "plain")]))
    elements = Elements(content)
    for kind in ("script", "img", "b"):
        assert len(elements.of(kind)) == len(plain.of(kind))
    assert EVIL in data_of(content)["panels"][1]["curves"][-1]["label"] + str(data_of(content))
    assert text_of(content).count(EVIL) >= 5


def test_several_runs_are_laid_over_each_other_and_compared_with_the_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "optim.lr=0.5", steps=8)]
    content = render(runs)
    text = text_of(content)
    assert [run["name"] for run in data_of(content)["runs"]] == ["a", "b"]
    assert "Differences from a: 2" in text
    assert "optim.lr 0.0025 0.5" in text
    assert "train.steps 12 8" in text
    assert "loss 2.0172 2.1795" in text  # beside each other


def test_a_run_goes_on_for_as_long_as_its_last_steps_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", "train.steps=1000")
    monkeypatch.setattr("oneflow_dist.reporting.launches.is_locked", lambda _: True)
    content = render([run], refresh_seconds=2.5)
    assert "left about 8 min 14 s" in text_of(content)
    assert data_of(content)["refresh"] == 2.5


def test_costs_in_money_are_shown_for_a_price_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "parallel.shard=4")
    text = text_of(render([run]))
    assert "device-hours 0.006667" in text  # 12 steps of half a second on 4 ranks
    assert "computed 12 TFLOP" in text
    assert "tokens and patches seen 6 k" in text
    assert "price" not in text
    assert "images seen" not in text  # nothing tells
    assert "price, at 1000 per device-hour 6.67" in text_of(render([run], price=1000.0))


def test_starts_are_listed_with_how_they_ended(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_attempt(run, 0, message="by SIGTERM after step 6", state="stopped", ended="then", saved_after="step-00000006")
    last = write_attempt(run, 1, message="12 steps", state="finished", ended="later")
    (last / "changes.diff").write_text("--- a/x\n+++ b/x\n-one\n+two\n")
    text = text_of(render([run]))
    assert "stopped by SIGTERM after step 6 step-00000006" in text
    assert "abc123, 2 lines changed" in text
    assert "torch 2.13.0, Python 3.11.7" in text
    assert "Not started by launch/" in text_of(render([write_run(tmp_path / "other")]))


def test_skipped_steps_are_listed_beside_their_budget(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "guard.max_skipped_steps=3")
    write_lines(run / "metrics.jsonl", [step_line(1), step_line(2, skipped="spike")])
    text = text_of(render([run]))
    assert "1 steps left out (guard.max_skipped_steps = 3)" in text
    assert "step 2 left out: spike" in text


def test_of_very_many_events_the_last_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_EVENTS", 2)
    write_lines(tmp_path / "metrics.jsonl", [step_line(step, skipped="spike") for step in range(1, 6)])
    text = text_of(render([tmp_path]))
    assert "step 4 left out" in text
    assert "step 3 left out" not in text
    assert "The last 2 of 5" in text


def test_a_long_run_is_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, "loss": step % 7} for step in range(1, 30_001)])
    content = render([tmp_path])
    assert "Long curves are thinned" in text_of(content)
    assert len(content) < 100_000
    assert "Long curves" not in text_of(render([write_run(tmp_path / "short")]))


def test_a_run_without_samples_has_no_slider(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "sample" not in [attributes.get("id") for attributes in Elements(render([run])).of("input")]
    write_samples(run, 4, 8)
    elements = Elements(render([run]))
    assert "sample" in [attributes.get("id") for attributes in elements.of("input")]
    assert [(image["data-step"], "hidden" in image) for image in elements.of("img")] == [("4", True), ("8", False)]
    assert "after step 8" in str(elements.of("img")[1]["alt"])


def test_pictures_are_spread_over_the_run_with_the_last(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    samples = {step: tmp_path / f"samples/{step}.png" for step in range(10, 1010, 10)}
    for path in samples.values():
        path.write_bytes(bytes(100))
    chosen = list(choose_pictures(samples, 10**9))
    assert len(chosen) == page.MOST_PICTURES
    assert (chosen[0], chosen[-1]) == (10, 1000)
    assert max(after - before for before, after in itertools.pairwise(chosen)) <= 30
    assert list(choose_pictures(samples, 350)) == [10, 510, 1000]
    assert list(choose_pictures(samples, 1)) == [1000]
    assert choose_pictures({}, 1) == {}


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "metrics.jsonl")):
        render([tmp_path])


def test_scripts_cannot_end_early() -> None:
    for name in ("page.js", "page.css"):
        assert "</" not in Path(page.__file__).with_name(name).read_text()
