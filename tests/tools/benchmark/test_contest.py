from __future__ import annotations

import pytest
import torch

from tests.tools.benchmark.contests import run_case
from tools.benchmark.contest import INPUT_SETS, ROUNDS, Call, Case, Contender, Inputs, enter, time_in_turn

CPU = torch.device("cpu")
SIZE = 64


def make_inputs(seed: int) -> Inputs:
    return (torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)),)


def squaring(name: str, factor: float = 1.0, is_ours: bool = False) -> Contender:
    return Contender(name=name, prepare=lambda inputs: lambda: [factor * inputs[0] @ inputs[0]], is_ours=is_ours)


def case_of(*contenders: Contender) -> Case:
    return Case(
        name="squares",
        make_inputs=make_inputs,
        contenders=contenders,
        flops=2.0 * SIZE**3,
        num_bytes=8.0 * SIZE**2,
        outputs=("square",),
        parts=list,
        truth=lambda inputs: [inputs[0].double() @ inputs[0].double()],
    )


def test_contenders_are_timed_and_compared_with_the_truth() -> None:
    ours, other = run_case(case_of(squaring("ours", is_ours=True), squaring("off by 1 %", 1.01)), CPU)
    assert (ours["is_ours"], other["is_ours"]) == (True, False)
    assert ours["errors"]["square"] < 1e-6
    assert other["errors"]["square"] == pytest.approx(0.01, rel=1e-3)
    for entry in (ours, other):
        assert entry["ms_range"][0] <= entry["ms"] <= entry["ms_range"][1]
        assert entry["tflops"] == pytest.approx(2 * SIZE**3 / entry["ms"] / 1e9)
        assert entry["gib_per_second"] == pytest.approx(8 * SIZE**2 / 2**30 / entry["ms"] * 1e3)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError])
def test_a_contender_that_cannot_run_is_recorded_with_its_error_ours_too(error: type[Exception]) -> None:
    def refuse(inputs: Inputs) -> Call:
        raise error("no such GPU\nand a long trace")

    absent = Contender(name="absent", prepare=refuse, needs="no_such_package")
    broken = Contender(name="broken", prepare=refuse, is_ours=True)
    found = {line["name"]: line for line in run_case(case_of(broken, squaring("peer"), absent), CPU)}
    reason = "no such GPU" if error is not KeyError else "'no such GPU\\nand a long trace'"
    assert found["broken"] == {
        "case": "squares",
        "name": "broken",
        "is_ours": True,
        "failed": f"{error.__name__}: {reason}",
    }
    assert found["absent"]["failed"] == "no_such_package is not installed"
    assert "ms" in found["peer"]


def test_one_that_dies_while_it_is_timed_ends_no_other() -> None:
    calls: list[int] = []

    def call() -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of memory")
        return [torch.ones(SIZE, SIZE)]

    dies, lives = run_case(case_of(Contender(name="dies", prepare=lambda inputs: call), squaring("lives")), CPU)
    assert dies["failed"] == "RuntimeError: out of memory"
    assert "ms" in lives


def test_there_is_a_line_after_each_round() -> None:
    case = case_of(squaring("ours", is_ours=True), squaring("peer"))
    assert [line["name"] for line in time_in_turn(case, enter(case, CPU), CPU)] == ["ours", "peer"] * ROUNDS


def test_input_sets_take_turns() -> None:
    used = []

    def prepare(inputs: Inputs) -> Call:
        return lambda: used.append(float(inputs[0][0, 0])) or [inputs[0]]  # type: ignore[func-returns-value]

    run_case(case_of(Contender(name="ours", prepare=prepare, is_ours=True)), CPU)
    assert len(set(used)) == INPUT_SETS
    assert set(used[-INPUT_SETS:]) == {float(make_inputs(seed)[0][0, 0]) for seed in range(INPUT_SETS)}
