from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oneflow_kernels import launches as module
from oneflow_kernels.launches import ALL, CPU, NEW, OLD, Launch, Launches, on, target_of, tuned, tuned_file

FIRST, SECOND, OWN = Launch({"BLOCK": 64}, 4, 2), Launch({"BLOCK": 128}, 8, 3), Launch({"BLOCK": 16}, 1, 1)
SUM = Launches("sum", on(NEW, FIRST, SECOND) | on(OLD, SECOND))


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "chosen", {})
    yield
    tuned.cache_clear()


def remember(folder: Path, device: str, kernel: str, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_file(folder, device).write_text(json.dumps({"launches": {kernel: launch._asdict()}}))
    monkeypatch.setattr(module, "TUNED", folder)
    tuned.cache_clear()


def test_a_gpu_has_its_own_launches_and_the_first_of_them_runs() -> None:
    assert SUM.on_target("cuda:80") == [SECOND]
    assert SUM.on_target("cuda:100") == [FIRST, SECOND]
    assert SUM.on_target("cpu") == [FIRST, SECOND]
    assert Launches("own", on(ALL, FIRST) | on(CPU, OWN)).best(torch.zeros(1)) == OWN
    assert SUM.best(torch.zeros(1)) == FIRST


def test_what_was_found_to_be_faster_runs_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path, "cpu", "sum", SECOND, monkeypatch)
    assert SUM.best(torch.zeros(1)) == SECOND
    assert Launches("product", SUM.ways).best(torch.zeros(1)) == FIRST


def test_a_launch_that_is_shipped_no_more_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path, "cpu", "sum", OWN, monkeypatch)
    assert SUM.best(torch.zeros(1)) == FIRST


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), "cuda:80"), ((8, 9), "cuda:80"), ((9, 0), "cuda:90"), ((10, 3), "cuda:100"), ((12, 0), "cuda:80")],
)
def test_a_gpu_is_of_the_kind_with_as_much_shared_memory(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], target: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        assert target_of(torch.empty(0, device="cuda")) == target
    assert target_of(torch.zeros(1)) == "cpu"
