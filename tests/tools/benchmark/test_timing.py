from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tools.benchmark.timing import host_waits, milliseconds_of, peak_gib, reset_peak, running_ms, time_steps

CPU = torch.device("cpu")


def test_calls_are_timed_in_milliseconds_after_one_that_warms_up() -> None:
    calls: list[int] = []
    milliseconds = milliseconds_of(lambda: calls.append(1) or np.ones((200, 200)) @ np.ones((200, 200)), CPU)
    assert len(calls) == 4
    assert 0.0 < milliseconds < 1000.0


def test_input_sets_take_turns_after_a_step_that_warms_up() -> None:
    used: list[int] = []
    seconds, line = time_steps(used.append, 6, CPU)
    assert used == [0, 0, 1, 2, 3, 0, 1]
    least, most = line["step_ms_range"]
    assert line["steps"] == 6
    assert least <= line["step_ms"] <= most <= 1e3 * seconds


class Recorded:
    """A guard and what launches steps for it; the steps are their numbers."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def launch(self, number: int) -> Any:
        self.events.append(f"launch {number}")
        return number

    def finish(self, made: Any) -> None:
        self.events.append(f"read {made}")


def test_running_steps_are_looked_at_when_the_next_has_been_launched() -> None:
    guard: Any = Recorded()
    assert running_ms(guard.launch, guard, 3, CPU) >= 0.0
    assert guard.events == ["launch 0", "launch 1", "read 0", "launch 2", "read 1", "read 2"]


def test_a_cpu_waits_for_no_device_and_is_not_asked() -> None:
    guard: Any = Recorded()
    assert host_waits(lambda: guard.launch(0), guard, CPU) is None
    assert guard.events == []


def test_a_cpu_tells_no_peak() -> None:
    assert reset_peak(CPU) == 0.0
    assert peak_gib(CPU) is None
