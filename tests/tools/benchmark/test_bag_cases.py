from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.planning.batches import make_batch
from tests.tools.benchmark.contests import run_case
from tools.benchmark.bag_cases import (
    Shape,
    bag_cases,
    loss_case,
    packed_case,
    quack_loss,
    sampling_case,
    whole_loss,
)

CPU = torch.device("cpu")
SLOT = torch.cat([torch.arange(0, 300, 2).repeat_interleave(2), torch.tensor([299] * 7)])  # bags of two, and padding
SMALL = Shape(name="small", slots=300, width=48, vocab=500, bag_slot=SLOT, num_bags=300, num_filled=151)


def test_ours_and_its_peers_compute_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    result = run_case(loss_case(SMALL, CPU), CPU)
    entries = {entry["name"]: entry for entry in result}
    for name, package in (("Liger fused linear", "liger_kernel"), ("quack linear cross entropy", "quack")):
        assert package in entries.pop(name)["failed"]  # which is not installed
    assert next(iter(entries)) == "ours"
    for name, entry in entries.items():
        assert entry["errors"].keys() == {"loss", "dhidden", "dweight"}
        assert all(error < 0.01 for error in entry["errors"].values()), (name, entry)
    ours, eager = (entries[name]["errors"] for name in ("ours", "logits, eager"))
    assert all(error <= 2 * eager[name] + 1e-6 for name, error in ours.items())


def test_quack_gets_whole_eights_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with its arguments."""

    def stand_in(
        x: Tensor,
        weight: Tensor,
        target: Tensor,
        chunk_size: int = 4096,
        ignore_index: int = 0,
        reduction: str = "mean",
    ) -> Tensor:
        assert len(x) == len(target) == 16
        return F.cross_entropy(F.linear(x, weight), target, ignore_index=ignore_index, reduction=reduction)

    module = ModuleType("quack.linear_cross_entropy")
    module.chunked_linear_cross_entropy = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quack", ModuleType("quack"))
    monkeypatch.setitem(sys.modules, "quack.linear_cross_entropy", module)
    case = torch.randn(13, 8), torch.randn(50, 8), torch.arange(13)
    torch.testing.assert_close(quack_loss(*case), whole_loss(*case))


def test_flops_are_those_of_filled_slots() -> None:
    cases = {case.name: case for case in bag_cases(CPU, 1)}
    assert cases["bag loss, 8B, forward and backward"].flops == 6 * 8192 * 4096 * 128256


def test_a_real_pack_has_its_bags(make_config: Callable[..., Config]) -> None:
    batch = make_batch(make_config(), 0)
    case = packed_case(batch, 16, 300, CPU)
    hidden, weight, tokens, slot, bag_weight = case.make_inputs(0)
    assert (hidden.shape, weight.shape, len(tokens)) == ((len(batch.tokens), 16), (300, 16), len(batch.bag_tokens))
    assert torch.equal(slot, batch.bag_slot)
    assert torch.equal(bag_weight > 0.0, batch.bag_weight > 0.0)
    assert case.flops == 6 * batch.num_filled * 16 * 300


def test_drawing_tokens_is_timed() -> None:
    case = sampling_case(SMALL, CPU)
    del case.contenders["logits, compiled"]
    assert all(entry["ms"] > 0.0 for entry in run_case(case, CPU))
