from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from oneflow_dist.parallel.titan import collect_garbage
from tests.launching import Launcher
from tests.messages import naming

TESTED = ("0.2.2", "0.3.0")  # docs/decisions/0009-torchtitan-parts.md says what of each works on which torch


class Cycle:
    """Garbage that only a collector finds."""

    found = 0

    def __init__(self) -> None:
        self.self = self

    def __del__(self) -> None:
        Cycle.found += 1


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    gc.collect()
    Cycle.found = 0
    yield
    gc.enable()


def test_the_installed_torchtitan_is_one_that_was_tried() -> None:
    assert version("torchtitan") in TESTED


def test_garbage_is_collected_every_so_many_steps_and_at_no_other_time() -> None:
    collect = collect_garbage(3)
    assert not gc.isenabled()
    found = []
    for step in range(1, 8):
        Cycle()
        collect(step)
        found.append(Cycle.found)
    assert found == [0, 0, 3, 3, 3, 6, 6]


def test_garbage_is_collected_once_at_the_start() -> None:
    gc.disable()
    Cycle()
    collect_garbage(3)
    assert Cycle.found == 1


def loaded_without_collecting() -> tuple[bool, bool]:
    collect_garbage(0)(1)
    return gc.isenabled(), "torchtitan" in sys.modules


def test_without_gc_every_steps_python_collects_as_it_likes_and_torchtitan_is_not_loaded(launcher: Launcher) -> None:
    assert launcher.call(1, loaded_without_collecting) == [(True, False)]


def test_what_to_install_is_said_where_torchtitan_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchtitan"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchtitan", None)
    with pytest.raises(ValueError, match=naming("train.gc_every_steps", 3, "torchtitan", "train.gc_every_steps = 0")):
        collect_garbage(3)
