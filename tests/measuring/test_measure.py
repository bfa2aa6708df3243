from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.launching import Finished, run_python


def run(result: Path, config: str, kind: str) -> Finished:
    settings = {"config": config, "overrides": [], "steps": 1}
    job: dict[str, Any] = {"name": "a job", "kind": kind, "overrides": []}
    task = {"job": job, "settings": settings, "result": str(result)}
    return run_python("-m", "oneflow_dist.measuring.measure", json.dumps(task))


def test_numbers_go_to_the_result_file(tmp_path: Path) -> None:
    end = run(tmp_path / "result.json", "configs/debug.toml", "plan")
    assert end.code == 0
    assert json.loads((tmp_path / "result.json").read_text())["measured"]["peak_gib"] > 0.0


def test_an_error_goes_there_in_one_line_and_to_stderr_whole(tmp_path: Path) -> None:
    end = run(tmp_path / "result.json", "configs/no-such.toml", "plan")
    assert end.code == 1
    answer = json.loads((tmp_path / "result.json").read_text())
    assert answer == {
        "error": "ValueError: configs/no-such.toml: no such config file; "
        "configs/ has the ones that come with the project"
    }
    assert "Traceback" in end.stderr
