"""Which steps are left out, where this rank is, for which rank the others wait, and whether to stop."""

from __future__ import annotations

import dataclasses
import math
import socket
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float32, Float64
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import StepMetrics
from oneflow_dist.flow.losses import are_finite
from oneflow_dist.guard.bad_batches import keep_suspects
from oneflow_dist.guard.pace import Pace
from oneflow_dist.guard.skipping import GuardState, Judgement, LaunchedStep, SkipRule
from oneflow_dist.guard.watchdog import Place, Watchdog
from oneflow_dist.runtime import gather_objects, log
from oneflow_dist.signals import StopSignals

PATIENCE = 10.0  # of guard.hang_seconds: the first step compiles and connects, checkpoints and pictures take long
SLOW_PHASES = ("validation", "checkpoint", "sampling")
OWN_PHASES = ("waiting for data", "optimizer step")  # in which a rank waits for no other
WORTH_A_LINE = 0.05  # of a step's time


@dataclass(slots=True)
class Times:
    """Seconds that this rank has spent by itself since the last report."""

    since: float
    steps: int = 0
    own: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OWN_PHASES, 0.0))


class Guard:
    """The guard of one rank; inside `with guard:` it watches for hangs, and a signal stops the run after its step."""

    def __init__(self, config: Config, state: GuardState | None = None, signals: StopSignals | None = None):
        self.state = state or GuardState()
        self._signals = signals or StopSignals()
        self._config = config
        self._rule: SkipRule | None = None
        self._first_step: int | None = None
        self.place = Place(step=0, phase="start", since=time.monotonic(), limit=math.inf)
        self._times = Times(since=time.monotonic())
        self.pace = Pace()
        self._watchdog: Watchdog | None = None

    def __enter__(self) -> Guard:
        self._signals.begin()
        if self._config.guard.hang_seconds > 0.0:
            folder = Path(self._config.run.folder) / "hangs"
            self._watchdog = Watchdog(lambda: self.place, folder, min(1.0, self._config.guard.hang_seconds / 5))
        return self

    def __exit__(self, *error: object) -> None:
        self._signals.end()
        if self._watchdog is not None:
            self._watchdog.close()

    @property
    def stop_signal(self) -> str:
        """The name of the signal that this rank has been sent, if any."""
        return self._signals.name

    def enter(self, phase: str, step: int) -> None:
        """From here on this rank is in `phase` of `step`, until it enters another."""
        if self._first_step is None:
            self._first_step = step
        now, before = time.monotonic(), self.place
        self.pace.spend(before.phase, now - before.since)
        if before.phase in OWN_PHASES and before.step > self._first_step:
            self._times.own[before.phase] += now - before.since
        if phase == OWN_PHASES[0] and step > self._first_step:
            self._times.since = now if self._times.steps == 0 else self._times.since
            self._times.steps += 1
        patience = PATIENCE if step == self._first_step or phase in SLOW_PHASES else 1.0
        self.place = Place(step=step, phase=phase, since=now, limit=patience * self._config.guard.hang_seconds)

    def judge(self, sums: Float32[Tensor, "_"]) -> tuple[Float32[Tensor, ""], Float64[Tensor, "_"]]:
        """Whether the optimizer must leave out this step; see `SkipRule.judge`."""
        if self._rule is None:
            self._rule = SkipRule(self.state, self._config.guard.spike_factor, sums.device)
        return self._rule.judge(sums)

    def finish(self, made: LaunchedStep) -> StepMetrics:
        """What became of a step, when the device has made it. All ranks call, all get the same.

        Raises:
            FloatingPointError: it was left out, and `guard.max_skipped_steps` had been before it.
        """
        self.enter("waiting for the device", made.step)
        judgement = Judgement.read(made.judgement.wait())
        before = self.state.skipped
        skipped = before + judgement.is_skipped
        self.state = GuardState(norm_mean=judgement.next_norm_mean, accepted=judgement.next_accepted, skipped=skipped)
        metrics = StepMetrics(losses=judgement.losses, grad_norm=judgement.grad_norm, counts=made.counts)
        if not judgement.is_skipped:
            return metrics
        reason, details = self._describe(judgement)
        where, kept = keep_suspects(made.losses, made.batches, made.step, self._config.run.folder)
        allowed = self._config.guard.max_skipped_steps
        found = f"step {made.step}, {where}: {details}{kept}; "
        if before < allowed:
            log(f"{found}skipped ({skipped} of guard.max_skipped_steps = {allowed})")
            return dataclasses.replace(metrics, skipped=reason)
        spent = f"guard.max_skipped_steps ({allowed}) were skipped before; " if allowed else ""
        raise FloatingPointError(f"{found}{spent}the weights were not changed; lower optim.lr or inspect the samples")

    def slowest_rank(self, step: int) -> dict[str, float]:
        """Every `guard.slow_ranks_every_steps`: the rank that the others wait for, as metrics of this step.

        In a synchronous step all ranks take the same time; what differs is how long each is busy before it meets the
        others: it waits for data and updates its weights.
        """
        every = self._config.guard.slow_ranks_every_steps
        if not every or step % every or self._times.steps == 0:
            return {}
        self.enter("waiting for the other ranks", step)
        times, self._times = self._times, Times(since=time.monotonic())
        busy = [seconds / times.steps for seconds in times.own.values()]
        ranks = gather_objects((sum(busy), busy[0], socket.gethostname()))
        slowest = max(range(len(ranks)), key=lambda rank: ranks[rank][0])
        seconds, for_data, host = ranks[slowest]
        behind = seconds - statistics.median(rank[0] for rank in ranks)
        if behind > WORTH_A_LINE * (self._times.since - times.since) / times.steps:
            log(
                f"step {step}: the others wait for rank {slowest} on {host}, {behind:.3g} s behind the median rank in "
                f"each of the last {times.steps} steps; it waits {for_data:.3g} s for data"
            )
        return {"slowest_rank": slowest, "slowest_behind_seconds": behind}

    def _describe(self, judgement: Judgement) -> tuple[str, str]:
        """What is wrong with a step that was left out, in short and with its values."""
        norm, mean, factor = judgement.grad_norm, judgement.norm_mean, self._config.guard.spike_factor
        if not (are_finite(judgement.losses) and math.isfinite(norm)):
            losses = judgement.losses.named(self._config.modality).items()
            values = ", ".join(f"{name} {loss:g}" for name, loss in losses)
            return "not finite", f"not finite: {values}, gradient norm {norm:g}"
        times = f"{norm / mean:.3g} times its mean of {mean:g}"
        return "spike", f"gradient norm {norm:g} is {times} (guard.spike_factor {factor:g})"
