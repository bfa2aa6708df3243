from __future__ import annotations

import pytest
import torch

from oneflow_kernels.backend import uses_triton
from tests.messages import Message


def test_a_cpu_computes_by_the_definition_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    chosen = {}
    for choice in ("auto", "reference", "triton"):
        monkeypatch.setenv("ONEFLOW_KERNELS", choice)
        chosen[choice] = uses_triton(x)
    assert chosen == {"auto": False, "reference": False, "triton": True}


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", "cuda")
    with pytest.raises(ValueError) as error:
        uses_triton(torch.zeros(1))
    assert Message(error.value) == 'ONEFLOW_KERNELS: "cuda" is none of auto, triton, reference'


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError) as error:
        uses_triton(torch.zeros(1))
    assert Message(error.value) == "ONEFLOW_KERNELS: triton needs a GPU, or TRITON_INTERPRET=1; this tensor is on cpu"
