from __future__ import annotations

import pytest
import torch

from oneflow_dist.measuring.contest import INPUT_SETS, Call, Case, Contender, Inputs, run_case

CPU = torch.device("cpu")
SIZE = 64


def make_inputs(seed: int) -> Inputs:
    return (torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)),)


def squaring(name: str, factor: float = 1.0, is_ours: bool = False) -> Contender:
    return Contender(name=name, prepare=lambda inputs: lambda: [factor * inputs[0] @ inputs[0]], is_ours=is_ours)


def refuse(inputs: Inputs) -> Call:
    raise RuntimeError("no such GPU\nand a long trace")


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
    result = run_case(case_of(squaring("ours", is_ours=True), squaring("off by 1 %", 1.01)), CPU)
    ours, other = result["contenders"]
    assert (ours["is_ours"], other["is_ours"]) == (True, False)
    assert ours["errors"]["square"] < 1e-6
    assert other["errors"]["square"] == pytest.approx(0.01, rel=1e-3)
    for entry in (ours, other):
        assert entry["ms_range"][0] <= entry["ms"] <= entry["ms_range"][1]
        assert entry["tflops"] == pytest.approx(2 * SIZE**3 / entry["ms"] / 1e9)
        assert entry["gib_per_second"] == pytest.approx(8 * SIZE**2 / 2**30 / entry["ms"] * 1e3)


def test_a_peer_that_cannot_run_is_recorded_with_its_error() -> None:
    absent = Contender(name="absent", prepare=refuse, needs="no_such_package")
    result = run_case(case_of(squaring("ours", is_ours=True), Contender(name="broken", prepare=refuse), absent), CPU)
    ours, broken, missing = result["contenders"]
    assert "ms" in ours
    assert broken == {"name": "broken", "is_ours": False, "failed": "RuntimeError: no such GPU"}
    assert missing["failed"] == "no_such_package is not installed"


def test_ours_may_not_fail() -> None:
    with pytest.raises(RuntimeError, match="no such GPU"):
        run_case(case_of(Contender(name="ours", prepare=refuse, is_ours=True)), CPU)


def test_input_sets_take_turns() -> None:
    used = []

    def prepare(inputs: Inputs) -> Call:
        return lambda: used.append(float(inputs[0][0, 0])) or [inputs[0]]  # type: ignore[func-returns-value]

    run_case(case_of(Contender(name="ours", prepare=prepare, is_ours=True)), CPU)
    assert len(set(used)) == INPUT_SETS
    assert used[-INPUT_SETS:] == [float(make_inputs(seed)[0][0, 0]) for seed in range(INPUT_SETS)]
