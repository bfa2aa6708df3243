from __future__ import annotations

import math

import pytest
import torch

from oneflow_dist.guard.skipping import MEMORY_STEPS, WARMUP_STEPS, GuardState, Judgement, SkipRule

CPU = torch.device("cpu")
LOSSES = [0.5, 0.25, 2.0, 1.0, 3.75]


def judge(rule: SkipRule, norm: float, losses: list[float] = LOSSES) -> Judgement:
    is_skipped, values = rule.judge(torch.tensor([*losses, norm]))
    judgement = Judgement.read(values)
    assert is_skipped.item() == judgement.is_skipped
    return judgement


def after(norms: list[float], factor: float = 0.0) -> tuple[SkipRule, Judgement]:
    rule = SkipRule(GuardState(), factor, CPU)
    return rule, [judge(rule, norm) for norm in norms][-1]


def test_the_mean_norm_is_plain_at_first_and_then_forgets() -> None:
    norms = [float(n % 7) for n in range(MEMORY_STEPS)]
    rule, judgement = after(norms)
    assert judgement.next_norm_mean == pytest.approx(sum(norms) / MEMORY_STEPS, rel=1e-12)
    later = judge(rule, 100.0)
    moved = judgement.next_norm_mean + (100.0 - judgement.next_norm_mean) / MEMORY_STEPS
    assert later.next_norm_mean == pytest.approx(moved, rel=1e-12)
    assert (later.norm_mean, later.next_accepted) == (judgement.next_norm_mean, MEMORY_STEPS + 1)


def test_a_spike_is_a_norm_above_its_multiple_of_the_mean_once_there_is_a_mean() -> None:
    early, _ = after([1.0] * (WARMUP_STEPS - 1), factor=4.0)
    assert not judge(early, 1e9).is_skipped
    for norm, is_spike in ((0.0, False), (4.0, False), (4.001, True)):
        rule, _ = after([1.0] * WARMUP_STEPS, factor=4.0)
        assert judge(rule, norm).is_skipped == is_spike
    never, _ = after([1.0] * WARMUP_STEPS, factor=0.0)
    assert not judge(never, 1e9).is_skipped


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(len(LOSSES) + 1))
def test_what_is_not_finite_is_left_out_and_not_remembered(place: int, bad: float) -> None:
    rule, before = after([2.0, 4.0])
    values = [*LOSSES, 2.0]
    values[place] = bad
    judgement = judge(rule, values[-1], values[:-1])
    assert judgement.is_skipped
    assert (judgement.next_norm_mean, judgement.next_accepted) == (before.next_norm_mean, before.next_accepted)
    assert not judge(rule, 2.0).is_skipped


def test_a_rule_goes_on_from_a_state_to_the_bit() -> None:
    norms = [0.1 + 0.37 * n for n in range(40)]
    whole, _ = after(norms, factor=3.0)
    _, half = after(norms[:25], factor=3.0)
    rest = SkipRule(GuardState(norm_mean=half.next_norm_mean, accepted=half.next_accepted), 3.0, CPU)
    for norm in norms[25:]:
        judge(rest, norm)
    assert torch.equal(rest.memory, whole.memory)


def test_the_host_reads_losses_and_norm_as_they_were() -> None:
    judgement = judge(SkipRule(GuardState(), 0.0, CPU), 0.1)
    assert judgement.losses.stack().tolist() == LOSSES
    assert judgement.grad_norm == torch.tensor(0.1).item()
