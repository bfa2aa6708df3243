"""Says in a line when steps have become slow, and where their time goes."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

from oneflow_dist.runtime import log

MEMORY_STEPS = 50
WARMUP_STEPS = 10  # before anything is called slow
SLOW_TIMES = 3.0  # a slow step takes so many times what is usual,
SLOW_SECONDS = 0.5  # and so much more
IN_A_ROW = 3  # of them are told,
COST_SECONDS = 10.0  # or as many as have taken so much more
ADVICE = {
    "waiting for data": "the disk of the data or its data workers are behind",
    "waiting for the other ranks": "another rank is late, which guard.slow_ranks_every_steps names",
}
OTHERWISE = "a link or a device has become slow; the health check before each start measures both"


class Pace:
    """How long the steps of a run take, as this rank sees it; one that is slow is not counted as usual."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=MEMORY_STEPS)
        self._slow: list[float] = []  # of the last steps, all in a row
        self._is_told = False
        self._phases: dict[str, float] = defaultdict(float)  # seconds, since the last step that was not slow

    def spend(self, phase: str, seconds: float) -> None:
        """Time that this rank has been in a phase of a step."""
        self._phases[phase] += seconds

    def note(self, step: int, seconds: float) -> None:
        """How long a step took; rank 0 says once that steps have become slow, and once that they no longer are."""
        usual = statistics.median(self._usual) if len(self._usual) >= WARMUP_STEPS else float("inf")
        if seconds > max(SLOW_TIMES * usual, usual + SLOW_SECONDS):
            self._slow.append(seconds)
            cost = sum(self._slow) - usual * len(self._slow)
            if not self._is_told and (len(self._slow) >= IN_A_ROW or cost > COST_SECONDS):
                self._is_told = True
                log(f"step {step}: {self._describe(usual)}")
            return
        if self._is_told:
            log(f"step {step}: {seconds:.3g} s, as before; {len(self._slow)} steps were slow")
        self._usual.append(seconds)
        self._is_told = False
        self._slow.clear()
        self._phases.clear()

    def _describe(self, usual: float) -> str:
        mean, number = statistics.mean(self._slow), len(self._slow)
        longest = max(self._phases, key=lambda phase: self._phases[phase], default="")
        return (
            f"{'this step' if number == 1 else f'the last {number} steps'} took {mean / usual:.0f} times as long as "
            f'usual, {mean:.3g} s instead of {usual:.3g}, most of it in "{longest}": {ADVICE.get(longest, OTHERWISE)}'
        )
