"""tools/benchmark.py on a CPU: the same program on small shapes."""

from __future__ import annotations

from pathlib import Path

from oneflow_dist.measuring.lines import Notebook
from oneflow_dist.measuring.report import by_job, of_kind
from tests.launching import Launcher


def test_kernels_are_checked_and_compared(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/benchmark.py", "kernels", "--output", tmp_path, "--only", "rows", "--commit", "0123abc")
    assert end.code == 0, end.stderr
    lines = Notebook(tmp_path).lines
    assert lines[0]["commit"] == "0123abc"
    checks = of_kind(lines, "check")
    assert len(checks) == 14
    assert all(check["is_right"] for check in checks)
    cases = by_job(lines, "contender", "case")
    assert len(cases) == 8
    for contenders in cases.values():
        assert [entry["name"] for entry in contenders] == ["ours", "compiled", "eager"]
        assert all("ms" in entry for entry in contenders), contenders
    assert "### gate and residual, 1B, forward and backward" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "contests.png").stat().st_size > 10_000


def test_the_numbers_may_be_checked_alone(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/benchmark.py", "kernels", "--check", "--output", tmp_path, "--only", "draws")
    assert end.code == 0, end.stderr
    assert "| drawn tokens | bfloat16 |" in (tmp_path / "report.md").read_text()
    assert of_kind(Notebook(tmp_path).lines, "contender") == []
