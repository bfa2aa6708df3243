"""Which steps are left out: decided on the device, where their numbers are, and told to the host later."""

# Shapes: m microbatches of this rank, L losses.

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from oneflow_dist.containers import Counts, Losses, PackedBatch
from oneflow_dist.transfers import Moment, ToHost

MEMORY_STEPS = 50  # of the mean gradient norm: of so many steps the plain mean, from then on exponential
WARMUP_STEPS = 20  # so many steps are accepted before a norm is called a spike


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardState:
    """What a run remembers of its steps; part of its checkpoints, so that a resumed run judges as the unbroken one."""

    norm_mean: float = 0.0  # of the gradient norms of accepted steps, before clipping
    accepted: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """A step that the device may still be working on."""

    step: int
    counts: Counts
    is_last: bool  # a rank has been told to stop
    batches: list[PackedBatch]  # of this rank
    losses: Float32[Tensor, "m L"]
    judgement: ToHost  # of `SkipRule.judge`
    end: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the host reads of a judgement."""

    losses: Losses
    grad_norm: float
    is_skipped: bool
    norm_mean: float  # before the step
    next_norm_mean: float
    next_accepted: int

    @classmethod
    def read(cls, values: Float64[Tensor, "_"]) -> Judgement:
        """From the numbers of `SkipRule.judge`, in host memory."""
        *losses, grad_norm, is_skipped, norm_mean, next_norm_mean, next_accepted = values.tolist()
        return cls(
            losses=Losses.unstack(torch.tensor(losses)),
            grad_norm=grad_norm,
            is_skipped=is_skipped > 0.0,
            norm_mean=norm_mean,
            next_norm_mean=next_norm_mean,
            next_accepted=int(next_accepted),
        )


class SkipRule:
    """The judge of gradient norms, with its memory of those before; all on the device.

    A step is left out whose losses or norm are not finite, or whose norm is a spike: above `spike_factor` times the
    mean of the accepted ones, once there are WARMUP_STEPS of them; factor 0: nothing is a spike.
    """

    def __init__(self, state: GuardState, spike_factor: float, device: torch.device):
        self.spike_factor = spike_factor
        self.memory = torch.tensor([state.norm_mean, state.accepted], dtype=torch.float64, device=device)

    def judge(self, sums: Float32[Tensor, "_"]) -> tuple[Float32[Tensor, ""], Float64[Tensor, "_"]]:
        """1 for a step that must be left out, else 0; and what `Judgement.read` reads.

        Args:
            sums: of `sum_over_ranks`, the same bits on every rank: so all decide alike.
        """
        norm, (mean, accepted) = sums[-1].double(), self.memory.unbind()
        is_accepted = torch.isfinite(sums).all()
        if self.spike_factor > 0.0:
            is_accepted &= (accepted < WARMUP_STEPS) | (norm <= self.spike_factor * mean)
        next_accepted = accepted + is_accepted
        moved = mean + (norm - mean) / next_accepted.clamp(1, MEMORY_STEPS)
        next_mean = torch.where(is_accepted, moved, mean)
        self.memory = torch.stack([next_mean, next_accepted])
        is_skipped = (~is_accepted).float()
        return is_skipped, torch.cat([sums.double(), torch.stack([is_skipped.double(), mean]), self.memory])
