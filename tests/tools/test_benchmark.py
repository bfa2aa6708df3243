"""tools/benchmark.py on a CPU: the same program on small shapes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launching import Launcher


def test_kernels_are_checked_and_compared(launcher: Launcher, tmp_path: Path) -> None:
    contest = "gate and residual, 1B"
    end = launcher.run("tools/benchmark.py", "kernels", "--output", tmp_path, "--only", contest, "--commit", "0123abc")
    assert end.code == 0, end.stderr
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["machine"]["commit"] == "0123abc"
    assert all(check["is_right"] for check in result["kernels"]["checks"])
    (case,) = result["cases"]
    assert case["name"] == f"{contest}, forward and backward"
    assert [entry["name"] for entry in case["contenders"]] == ["ours", "compiled", "eager"]
    assert all("ms" in entry for entry in case["contenders"]), case
    assert f"### {contest}, forward and backward" in path.with_suffix(".md").read_text()
    assert path.with_name(f"{path.stem}-kernels.png").stat().st_size > 10_000


def test_the_numbers_may_be_checked_alone(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/benchmark.py", "kernels", "--check", "--output", tmp_path)
    assert end.code == 0, end.stderr
    assert "| drawn tokens | bfloat16 |" in end.stdout
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["cases"] == []
