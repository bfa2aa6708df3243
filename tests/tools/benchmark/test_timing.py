from __future__ import annotations

import numpy as np
import torch

from tools.benchmark.timing import milliseconds_of, peak_gib, reset_peak, time_steps

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


def test_a_cpu_tells_no_peak() -> None:
    assert reset_peak(CPU) == 0.0
    assert peak_gib(CPU) is None
