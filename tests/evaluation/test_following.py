from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

from oneflow_dist.evaluation.following import checkpoints_of, folder_of, note_figures
from tests.launching import Run
from tests.messages import names, refused


def test_a_run_that_is_done_has_one_checkpoint_to_look_at(unbroken: Run) -> None:
    (checkpoint,) = checkpoints_of(unbroken.folder, None)
    assert checkpoint.name == "step-00000020"
    assert [*checkpoints_of(unbroken.folder, 0.01)] == [checkpoint]
    assert folder_of(unbroken.folder, "small", checkpoint) == unbroken.folder / "evaluation/small/step-00000020"


def test_a_checkpoint_is_followed_by_those_that_come_later(unbroken: Run, tmp_path: Path) -> None:
    first, *_, last = sorted((unbroken.folder / "checkpoints").iterdir())
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    found = checkpoints_of(tmp_path, 0.01)
    assert next(found).name == first.name

    def train() -> None:
        time.sleep(0.1)
        shutil.copytree(last, tmp_path / "coming")
        (tmp_path / "coming").rename(tmp_path / "checkpoints" / last.name)

    training = threading.Thread(target=train)
    training.start()
    assert [checkpoint.name for checkpoint in found] == [last.name]
    training.join()


def test_no_checkpoint_is_an_error_unless_one_may_come(tmp_path: Path) -> None:
    assert names(refused(lambda: [*checkpoints_of(tmp_path, None)]), tmp_path)


def test_figures_are_lines_by_step(tmp_path: Path) -> None:
    for step in (10, 20):
        figures = {"agreement": {"value": step / 100, "low": 0.0, "high": 1.0}}
        note_figures(tmp_path, "small", {"protocol": {"step": step}, "tasks": {"paint": {"figures": figures}}})
    lines = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "small/paint/agreement": 0.1}, {"step": 20, "small/paint/agreement": 0.2}]
