"""Launches compared with Triton's interpreter on a CPU: the same program on small shapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oneflow_kernels import bag_operations_kernels, fused_logits_kernels, interval_attention_kernels, launches, tune
from oneflow_kernels.launches import ALL, NEW, Launch, Launches, on
from tests.kernels.kernel_checks import interpreted_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    chosen: dict[tuple[str, int], Launch] = {}
    for module in (launches, tune):
        monkeypatch.setattr(module, "chosen", chosen)
    yield
    launches.tuned.cache_clear()


def all_launches() -> Iterator[Launches]:
    for module in (interval_attention_kernels, bag_operations_kernels, fused_logits_kernels):
        for table in vars(module).values():
            if isinstance(table, Launches):
                yield table
            elif isinstance(table, dict):
                yield from (own for own in table.values() if isinstance(own, Launches))


def test_every_kernel_with_several_launches_is_in_a_contest() -> None:
    compared = {contest.launches.kernel for contest in tune.contests(CPU, 512)}
    several = {own.kernel for own in all_launches() if any(len(own.on_target(target)) > 1 for target in ALL)}
    assert several <= compared
    assert several


def tuned(folder: Path) -> dict[str, list[tune.Timed]]:
    with interpreted_kernels():
        return dict(tune.tune(tune.compiled_contests(CPU), CPU, folder))


def test_the_fastest_launch_is_used_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Launch({"BLOCK": 16, "PAIRS": 1}, 4, 1), Launch({"BLOCK": 256, "PAIRS": 8}, 4, 1)
    table = Launches("bag logits", on(NEW, slow, fast))
    monkeypatch.setattr(bag_operations_kernels, "LOGITS", table)
    hidden, weight, tokens = torch.randn(8, 256), torch.randn(8, 256), torch.arange(8)

    def call() -> torch.Tensor:
        return bag_operations_kernels.bag_token_logits(hidden, weight, tokens, tokens)

    contests = [tune.Contest(table, call), tune.Contest(Launches("one", on(NEW, slow)), list)]
    monkeypatch.setattr(tune, "contests", lambda device, scale: iter(contests))
    found = tuned(tmp_path)
    assert [timed.launch for timed in found["bag logits"]] == [
        fast,
        slow,
    ]  # 128 steps for one
    assert list(found) == ["bag logits"]
    assert table.best(hidden) == fast

    monkeypatch.setattr(launches, "TUNED", tmp_path)
    launches.chosen.clear()
    launches.tuned.cache_clear()
    assert table.best(hidden) == fast

    contests[0] = tune.Contest(Launches("another", table.ways), call)
    tuned(tmp_path)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert set(content["launches"]) == {"bag logits", "another"}
    assert set(content["milliseconds"]["bag logits"]) == {str(slow), str(fast)}


def test_where_definitions_compute_there_is_nothing_to_tune() -> None:
    assert tune.compiled_contests(CPU) == []


def test_the_program_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["tune"])
    with pytest.raises(SystemExit) as end:
        tune.main()
    assert end.value.code == 2
    assert "no GPU" in capsys.readouterr().err
