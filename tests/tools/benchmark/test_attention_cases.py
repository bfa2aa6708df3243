from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from oneflow_dist.config import Config
from oneflow_dist.planning.batches import make_batch
from oneflow_kernels.flash_attention import functions_of
from tests.kernels.flash_stand_ins import install
from tests.tools.benchmark.contests import run_case
from tools.benchmark.attention_cases import (
    SEVEN,
    Shape,
    attention_case,
    attention_cases,
    first_document_in_float64,
    image_of_row,
    intervals_of,
    make_flex,
    make_inputs,
    make_ours,
    packed_case,
)
from tools.benchmark.contest import Case

CPU = torch.device("cpu")


def small(rule: str) -> Shape:
    return Shape(name="small", documents=(12, 30, 7), rule=rule, heads=(4, 2), width=16)


def case_of_ours(case: Case) -> Case:
    return replace(case, contenders={"ours": case.contenders["ours"]})


@pytest.mark.parametrize("rule", ["document", "causal", "transfusion"])
def test_ours_is_the_first_document_in_float64(rule: str) -> None:
    (entry,) = run_case(case_of_ours(attention_case(small(rule), CPU)), CPU)
    assert entry["errors"].keys() == {"out", "dquery", "dkey", "dvalue"}
    assert all(0.0 < error < 0.02 for error in entry["errors"].values()), entry["errors"]


def test_the_peer_that_is_compiled_on_a_gpu_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    shape = small("transfusion")
    inputs = tuple(x.detach() for x in make_inputs(shape, CPU, 0))  # FlexAttention has no gradients on a CPU
    (ours,) = make_ours(shape, inputs)()
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        (output,) = make_flex(shape, inputs)()
    torch.testing.assert_close(output, ours, rtol=0.02, atol=0.02)


def test_flash_attention_is_a_peer_where_it_is_installed_and_knows_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages stand in for them."""
    names = {"FlashAttention 4", "FlashAttention 3"}
    functions_of.cache_clear()
    assert not names & attention_case(small("document"), CPU).contenders.keys()
    for name in names:
        install(name, tmp_path, monkeypatch)
    assert not names & attention_case(small("transfusion"), CPU).contenders.keys()
    for rule in ("document", "causal"):
        case = attention_case(small(rule), CPU)
        case = replace(case, contenders={name: case.contenders[name] for name in sorted(names)})
        for entry in run_case(case, CPU):
            assert all(0.0 < error < 0.02 for error in entry["errors"].values()), entry
    functions_of.cache_clear()


def test_flops_count_pairs_of_rows() -> None:
    cases = {case.name: case for case in attention_cases(CPU, 1)}
    whole = 4 * 128 * 32 * sum(rows * rows for rows in SEVEN)
    assert sum(SEVEN) == 16384
    assert cases["attention, 7 documents, forward and backward"].flops == 3.5 * whole
    causal = cases["attention, 7 documents, causal, forward and backward"].flops
    assert causal == pytest.approx(3.5 * whole / 2, rel=1e-3)


@pytest.mark.parametrize("rule", ["document", "causal", "transfusion"])
def test_the_truth_of_one_head_after_another_is_that_of_the_formula(rule: str) -> None:
    shape = small(rule)
    query, key, value, grad, ends = make_inputs(shape, CPU, 0)
    rows, start, end = 12, *(own[:12, None] for own in intervals_of(shape, ends)[:2])
    learned = [x[:rows].detach().double().requires_grad_() for x in (query, key, value)]
    q, k, v = (x.transpose(0, 1) for x in learned)
    k, v = (x.repeat_interleave(2, dim=0) for x in (k, v))
    is_seen = (start <= torch.arange(rows)) & (torch.arange(rows) < end)
    out = (F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen)).transpose(0, 1)
    right = [out, *torch.autograd.grad(out, learned, grad[:rows].double())]
    found = first_document_in_float64(shape, (query, key, value, grad, ends))
    for own, expected in zip(found, right, strict=True):
        torch.testing.assert_close(own, expected.detach(), rtol=0.0, atol=1e-13)


def test_a_real_pack_has_its_documents_and_room_for_more(make_config: Callable[..., Config]) -> None:
    batch = make_batch(make_config(), 0)
    case = packed_case(batch, (4, 2), 16, CPU)
    *_, ends = case.make_inputs(0)
    assert torch.equal(ends, batch.cu_seqlens)
    assert case.flops == 3.5 * 4 * 16 * 4 * sum(rows**2 for rows in batch.cu_seqlens.diff().tolist())
    assert Shape(name="", documents=(220, 474), rule="document", room=9).longest == 512
    (entry,) = run_case(case_of_ours(case), CPU)
    assert all(0.0 < error < 0.02 for error in entry["errors"].values())


def test_every_other_quarter_is_an_image() -> None:
    images = image_of_row(Shape(name="", documents=(8, 9), rule="transfusion"), CPU)
    assert images.tolist() == [4, 4, 0, 0, 4, 4, 1, 1, 4, 4, 2, 2, 4, 4, 3, 3, 3]
