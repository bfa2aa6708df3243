"""Contests and launches as jobs, on a CPU: the same program on small shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_kernels.launches import NEW, Launch, Launches, on
from oneflow_kernels.tune import Contest, Timed
from tests.tools.benchmark.links import Kept
from tools.benchmark import kernels
from tools.benchmark.kernels import all_cases, measure_case, measure_launches

CPU = torch.device("cpu")


def test_the_real_pack_comes_first(make_config: Callable[..., Config]) -> None:
    names = [case.name for case in all_cases(make_config(), CPU)]
    assert names[:2] == [f"{what}, real pack, forward and backward" for what in ("bag loss", "attention")]


def test_contests_are_compiled_then_timed_and_looked_into(make_config: Callable[..., Config]) -> None:
    bag, *_ = all_cases(make_config(), CPU)
    link = Kept()
    case = replace(bag, contenders={"ours": bag.contenders["ours"]})
    measure_case(case, ", as tuned", True, link, CPU)
    assert [line["kind"] for line in link.lines] == ["ready", "contender", "contender", "contender", "kernels"]
    assert link.lines[1]["case"] == f"{bag.name}, as tuned"
    assert link.lines[4]["name"] == f"{bag.name}, as tuned: ours"


def test_launches_are_told_and_their_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch({"COLS": 16}, 4, 1)
    contest = Contest(Launches("bag softmax", on(NEW, launch)), list)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "cpu.json").write_text("{}")
    monkeypatch.setattr(kernels, "TUNED", tmp_path / "package")
    monkeypatch.setattr("oneflow_kernels.tune.compiled_contests", lambda device, scale, only: [contest])
    monkeypatch.setattr("oneflow_kernels.tune.tune", lambda *_: iter([("bag softmax", [Timed(2.0, launch)])]))
    link = Kept()
    measure_launches(("bag",), tmp_path, link, CPU)
    ready, told = link.lines
    assert (ready["kind"], told["milliseconds"]) == ("ready", {str(launch): 2.0})
    assert (tmp_path / "tuned-cpu.json").exists()
