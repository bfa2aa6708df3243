from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tools.benchmark import kernel_checks
from tools.benchmark.kernel_checks import all_checks, compare, poisoned_memory, run_checks

CPU = torch.device("cpu")


def test_all_that_runs_here_is_right() -> None:
    results = list(run_checks(CPU, 20))
    assert len(results) == len(list(all_checks(CPU, 20)))
    assert [result for result in results if not result["is_right"]] == []
    assert all(result["error"] < 0.05 for result in results)


def test_checks_are_chosen_by_the_beginnings_of_their_names() -> None:
    names = [result["name"] for result in run_checks(CPU, 20, ("bag loss", "drawn"))]
    assert set(names) == {name for name in names if name.startswith("bag loss")} | {"drawn tokens"}


def test_a_check_that_dies_is_wrong_and_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(device: torch.device, rows: int) -> None:
        raise AssertionError("a compiler's bug")

    monkeypatch.setattr(kernel_checks, "check_drawn_tokens", die)
    dead, weights = run_checks(CPU, 20, ("drawn", "first"))
    assert (dead["failed"], dead["is_right"]) == ("AssertionError: a compiler's bug", False)
    assert weights["is_right"]


def halves(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def check(ours: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> bool:
    inputs = (torch.randn(9, 5, dtype=torch.float64),)
    return bool(compare(ours, halves, inputs, dtype)["is_right"])


def test_what_is_wrong_is_seen() -> None:
    assert check(halves, torch.bfloat16)
    assert not check(lambda x: 0.51 * x, torch.bfloat16)
    assert not check(lambda x: halves(x) + torch.empty_like(x) * 0.0, torch.float32)
    assert not check(lambda x: halves(x) + 2e-7 * torch.rand(()), torch.float32)


def test_unwritten_memory_is_nan() -> None:
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        assert torch.empty_like(torch.zeros(10)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
