from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oneflow_dist.measuring.bag_cases import Shape, bag_cases, loss_case, sampling_case
from oneflow_dist.measuring.contest import run_case

CPU = torch.device("cpu")
SMALL = Shape(name="small", slots=300, width=48, vocab=500, bag_size=2)


@pytest.mark.parametrize("is_training", [True, False])
def test_ours_and_its_peers_compute_the_same_loss(monkeypatch: pytest.MonkeyPatch, is_training: bool) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    result = run_case(loss_case(SMALL, CPU, is_training), CPU)
    entries = {entry["name"]: entry for entry in result["contenders"]}
    assert entries.pop("Liger fused linear")["failed"] == "liger_kernel is not installed"
    assert next(iter(entries)) == "ours"
    for name, entry in entries.items():
        assert entry["errors"].keys() == ({"loss", "dhidden", "dweight"} if is_training else {"loss"})
        assert all(error < 0.01 for error in entry["errors"].values()), (name, entry)
    ours, eager = (entries[name]["errors"] for name in ("ours", "logits, eager"))
    assert all(error <= 2 * eager[name] + 1e-6 for name, error in ours.items())


def test_flops_are_those_of_filled_slots() -> None:
    cases = {case.name: case for case in bag_cases(CPU, 1)}
    assert cases["bag loss, 8B, forward and backward"].flops == 6 * 8192 * 4096 * 128256
    assert cases["bag loss, 8B, forward"].flops == 2 * 8192 * 4096 * 128256


def test_drawing_tokens_is_timed() -> None:
    case = sampling_case(SMALL, CPU)
    case = replace(case, contenders=tuple(c for c in case.contenders if c.name != "logits, compiled"))
    assert all(entry["ms"] > 0.0 for entry in run_case(case, CPU)["contenders"])
