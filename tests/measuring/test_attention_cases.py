from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oneflow_dist.measuring.attention_cases import (
    SEVEN,
    Shape,
    attention_case,
    attention_cases,
    image_of_row,
    make_inputs,
)
from oneflow_dist.measuring.contest import Inputs, run_case

CPU = torch.device("cpu")


def small(rule: str) -> Shape:
    return Shape(name="small", documents=(12, 30, 7), rule=rule, heads=(4, 2), width=16)


@pytest.mark.parametrize("rule", ["document", "causal", "transfusion"])
def test_ours_and_padded_attention_are_the_first_document_in_float64(rule: str) -> None:
    case = attention_case(small(rule), CPU, is_training=True)
    case = replace(case, contenders=tuple(c for c in case.contenders if c.name in ("ours", "SDPA, padded")))
    result = run_case(case, CPU)
    assert [entry["name"] for entry in result["contenders"]] == ["ours", "SDPA, padded"]
    for entry in result["contenders"]:
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
    ours, *flex = result["contenders"]
    assert [entry["name"] for entry in flex] == ["FlexAttention", "FlexAttention and its mask"]
    assert all(entry["errors"]["out"] < 0.02 for entry in (ours, *flex)), flex


def test_flops_count_pairs_of_rows() -> None:
    cases = {case.name: case for case in attention_cases(CPU, 1)}
    whole = 4 * 128 * 32 * sum(rows * rows for rows in SEVEN)
    assert sum(SEVEN) == 16384
    assert cases["attention, 7 documents, forward"].flops == whole
    assert cases["attention, 7 documents, forward and backward"].flops == 3.5 * whole
    assert cases["attention, 7 documents, causal, forward"].flops == pytest.approx(whole / 2, rel=1e-3)


def test_every_other_quarter_is_an_image() -> None:
    images = image_of_row(Shape(name="", documents=(8, 9), rule="transfusion"), CPU)
    assert images.tolist() == [4, 4, 0, 0, 4, 4, 1, 1, 4, 4, 2, 2, 4, 4, 3, 3, 3]
