from __future__ import annotations

import pytest
import torch

from oneflow_dist.measuring.row_cases import row_cases
from tests.measuring.contests import run_case

CPU = torch.device("cpu")
NAMES = ("norm and modulation", "gate and residual", "rotary", "SwiGLU")


def test_every_small_kernel_meets_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    cases = list(row_cases(CPU, 64))
    assert [case.name.partition(", ")[0] for case in cases] == [*NAMES, *NAMES]
    for case in cases[:4]:
        ours, compiled, eager = run_case(case, CPU)
        assert (ours["name"], compiled["name"], eager["name"]) == ("ours", "compiled", "eager")
        assert len(ours["errors"]) == len(case.outputs)
        assert all(error < 0.02 for error in ours["errors"].values()), (case.name, ours)
        assert ours["gib_per_second"] > 0.0
