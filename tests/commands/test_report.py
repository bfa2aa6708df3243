from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oneflow_dist.commands import report
from tests.launching import ROOT, Launcher, oneflow, only_error, run_main
from tests.messages import names
from tests.processes import wait_until
from tests.reporting.made_up import write_run

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_the_page_lies_in_the_folder_of_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    run_main(report, *runs)
    (line,) = capsys.readouterr().out.splitlines()
    assert names(line, runs[0] / "report.html", "a", 12, "b", 12)
    assert (runs[0] / "report.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in runs[0].iterdir() if "report" in path.name] == ["report.html"]


def test_the_page_may_lie_elsewhere_and_tell_a_price(tmp_path: Path) -> None:
    run_main(report, write_run(tmp_path / "a"), "--output", tmp_path / "new/page.html", "--price", "2.5")
    assert "at 2.5 per device-hour" in (tmp_path / "new/page.html").read_text()


def test_help_and_pages_need_no_torch(tmp_path: Path) -> None:
    program = "import sys, runpy; sys.argv = ['report', sys.argv[1]]; "
    program += "runpy.run_module('oneflow_dist.commands.report', run_name='__main__'); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, write_run(tmp_path / "a")]
    end = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert end.stdout.splitlines()[-1] == "False"


def test_watching_ends_with_the_run(launcher: Launcher, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "train.steps=100")
    output = run / "report.html"
    with subprocess.Popen([sys.executable, "-c", HOLD, run / "metrics.jsonl"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        job = launcher.start(*oneflow("report"), run, "--watch", "--every", "0.05")
        wait_until(lambda: output.exists() and '"refresh":0.05' in output.read_text(), "a page")
        first = output.stat().st_mtime_ns
        wait_until(lambda: output.stat().st_mtime_ns > first, "another page")
        assert "</html>" in output.read_text()
        holder.communicate(b"\n")
    (end,) = job.wait()
    assert end.code == 0, end.stderr
    assert '"refresh":null' in output.read_text()
    *lines, last = end.stdout.splitlines()
    assert names(lines[0], output, "running", 12)
    assert names(lines[-1], output, "ended", 12)
    assert "last page" in last


def test_a_folder_without_metrics_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("report"), tmp_path)
    assert end.code == 2
    assert names(only_error(end), tmp_path / "metrics.jsonl")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("option", "value"), [("--every", "0"), ("--every", "-1"), ("--price", "-0.5")])
def test_numbers_out_of_range_are_refused(option: str, value: str, launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("report"), write_run(tmp_path / "a"), option, value)
    assert names(only_error(end), option, float(value))
