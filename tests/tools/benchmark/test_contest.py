from __future__ import annotations

import pytest
import torch

from tests.tools.benchmark.contests import run_case
from tools.benchmark.contest import INPUT_SETS, ROUNDS, Call, Case, Inputs, Prepare, enter, time_in_turn

CPU = torch.device("cpu")
SIZE = 64


def make_inputs(seed: int) -> Inputs:
    return (torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)),)


def squaring(factor: float = 1.0) -> Prepare:
    return lambda inputs: lambda: [factor * inputs[0] @ inputs[0]]


def case_of(**contenders: Prepare) -> Case:
    return Case(
        name="squares",
        make_inputs=make_inputs,
        contenders=contenders,
        flops=2.0 * SIZE**3,
        outputs=("square",),
        parts=list,
        truth=lambda inputs: [inputs[0].double() @ inputs[0].double()],
    )


def test_contenders_are_timed_and_compared_with_the_truth() -> None:
    ours, other = run_case(case_of(ours=squaring(), off=squaring(1.01)), CPU)
    assert (ours["is_ours"], other["is_ours"]) == (True, False)
    assert ours["errors"]["square"] < 1e-6
    assert other["errors"]["square"] == pytest.approx(0.01, rel=1e-3)
    for entry in (ours, other):
        assert entry["least_ms"] <= entry["ms"] <= entry["most_ms"]
        assert entry["tflops"] == pytest.approx(2 * SIZE**3 / entry["ms"] / 1e9)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError])
def test_a_contender_that_cannot_run_is_recorded_with_its_error_ours_too(error: type[Exception]) -> None:
    def refuse(inputs: Inputs) -> Call:
        raise error("no such GPU\nand a long trace")

    broken, peer = run_case(case_of(broken=refuse, peer=squaring()), CPU)
    reason = "no such GPU" if error is not KeyError else "'no such GPU\\nand a long trace'"
    failed = f"{error.__name__}: {reason}"
    assert broken == {"case": "squares", "name": "broken", "is_ours": True, "failed": failed}
    assert "ms" in peer


def test_one_that_dies_while_it_is_timed_ends_no_other() -> None:
    calls: list[int] = []

    def call() -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of memory")
        return [torch.ones(SIZE, SIZE)]

    dies, lives = run_case(case_of(dies=lambda inputs: call, lives=squaring()), CPU)
    assert dies["failed"] == "RuntimeError: out of memory"
    assert "ms" in lives


def test_there_is_a_line_after_each_round() -> None:
    case = case_of(ours=squaring(), peer=squaring())
    assert [line["name"] for line in time_in_turn(case, enter(case, CPU), CPU)] == ["ours", "peer"] * ROUNDS


def test_input_sets_take_turns() -> None:
    used = []

    def prepare(inputs: Inputs) -> Call:
        return lambda: used.append(float(inputs[0][0, 0])) or [inputs[0]]  # type: ignore[func-returns-value]

    run_case(case_of(ours=prepare), CPU)
    assert len(set(used)) == INPUT_SETS
    assert set(used[-INPUT_SETS:]) == {float(make_inputs(seed)[0][0, 0]) for seed in range(INPUT_SETS)}
