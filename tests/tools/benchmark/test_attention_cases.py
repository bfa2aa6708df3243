from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneflow_dist.config import Config
from tests.tools.benchmark.contests import run_case
from tools.benchmark import attention_cases as attention_cases_module
from tools.benchmark.attention_cases import (
    SEVEN,
    Shape,
    attention_case,
    attention_cases,
    first_document_in_float64,
    image_of_row,
    intervals_of,
    make_inputs,
    packed_case,
)
from tools.benchmark.batches import make_batch
from tools.benchmark.contest import Inputs

CPU = torch.device("cpu")


def small(rule: str) -> Shape:
    return Shape(name="small", documents=(12, 30, 7), rule=rule, heads=(4, 2), width=16)


@pytest.mark.parametrize("rule", ["document", "causal", "transfusion"])
def test_ours_and_padded_attention_are_the_first_document_in_float64(rule: str) -> None:
    case = attention_case(small(rule), CPU, is_training=True)
    case = replace(case, contenders=tuple(c for c in case.contenders if c.name in ("ours", "SDPA, padded")))
    result = run_case(case, CPU)
    assert [entry["name"] for entry in result] == ["ours", "SDPA, padded"]
    for entry in result:
        assert entry["errors"].keys() == {"out", "dquery", "dkey", "dvalue"}
        assert all(0.0 < error < 0.02 for error in entry["errors"].values()), entry["errors"]


def test_the_peer_that_is_compiled_on_a_gpu_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = attention_case(small("transfusion"), CPU, is_training=False)
    contenders = tuple(c for c in case.contenders if c.name != "SDPA, padded")

    def without_gradients(seed: int) -> Inputs:
        return tuple(x.detach() for x in make_inputs(small("transfusion"), CPU, seed))

    case = replace(case, contenders=contenders, make_inputs=without_gradients)  # FlexAttention has none on a CPU
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        result = run_case(case, CPU)
    ours, *flex = result
    assert [entry["name"] for entry in flex] == ["FlexAttention", "FlexAttention and its mask"]
    assert all(entry["errors"]["out"] < 0.02 for entry in (ours, *flex)), flex


def test_flops_count_pairs_of_rows() -> None:
    cases = {case.name: case for case in attention_cases(CPU, 1)}
    whole = 4 * 128 * 32 * sum(rows * rows for rows in SEVEN)
    assert sum(SEVEN) == 16384
    assert cases["attention, 7 documents, forward and backward"].flops == 3.5 * whole
    causal = cases["attention, 7 documents, causal, forward and backward"].flops
    assert causal == pytest.approx(3.5 * whole / 2, rel=1e-3)


@pytest.mark.parametrize("rule", ["document", "causal", "transfusion"])
def test_the_truth_in_blocks_of_a_head_is_that_of_the_formula(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cases_module, "BLOCK", 5)
    shape = small(rule)
    query, key, value, grad, ends = make_inputs(shape, CPU, 0)
    rows, start, end = 12, *(own[:12, None] for own in intervals_of(shape, ends)[:2])
    learned = [x[:rows].detach().double().requires_grad_() for x in (query, key, value)]
    q, k, v = (x.transpose(0, 1) for x in learned)
    k, v = (x.repeat_interleave(2, dim=0) for x in (k, v))
    is_seen = (start <= torch.arange(rows)) & (torch.arange(rows) < end)
    out = (F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen)).transpose(0, 1)
    right = [out, *torch.autograd.grad(out, learned, grad[:rows].double())]
    found = first_document_in_float64(shape, (query, key, value, grad, ends), is_training=True)
    for own, expected in zip(found, right, strict=True):
        torch.testing.assert_close(own, expected.detach(), rtol=0.0, atol=1e-13)


def test_a_real_pack_has_its_documents_and_room_for_more(make_config: Callable[..., Config]) -> None:
    batch = make_batch(make_config(), 0)
    case = packed_case(batch, (4, 2), 16, CPU)
    *_, ends = case.make_inputs(0)
    assert torch.equal(ends, batch.cu_seqlens)
    assert case.flops == 3.5 * 4 * 16 * 4 * sum(rows**2 for rows in batch.cu_seqlens.diff().tolist())
    assert Shape(name="", documents=(220, 474), rule="document", room=9).longest == 512
    assert all(
        0.0 < e < 0.02 for e in run_case(replace(case, contenders=case.contenders[:1]), CPU)[0]["errors"].values()
    )


def test_every_other_quarter_is_an_image() -> None:
    images = image_of_row(Shape(name="", documents=(8, 9), rule="transfusion"), CPU)
    assert images.tolist() == [4, 4, 0, 0, 4, 4, 1, 1, 4, 4, 2, 2, 4, 4, 3, 3, 3]
