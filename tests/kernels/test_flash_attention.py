"""FlashAttention 3 and 4 through packages that stand in for them: which is chosen, and what is made of its results."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from oneflow_kernels import flash_attention as module
from oneflow_kernels import reference
from oneflow_kernels.flash_attention import choose, flash_attention
from tests.kernels.flash_stand_ins import backward_3, backward_4, forward_3, forward_4, install
from tests.launching import Launcher
from tests.messages import names

NAMES = ("FlashAttention 4", "FlashAttention 3")
CU_SEQLENS = torch.tensor([0, 5, 5, 8], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    module.functions_of.cache_clear()
    yield
    module.functions_of.cache_clear()


def rows(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, heads, 6, generator=generator, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]


def test_nothing_is_chosen_where_nothing_is_installed(caplog: pytest.LogCaptureFixture) -> None:
    assert choose(9) == ""
    assert caplog.records == []


def test_the_newest_that_knows_the_gpu_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("FlashAttention 3", tmp_path, monkeypatch)
    assert [choose(major) for major in (8, 9, 10, 12)] == ["", "FlashAttention 3", "", ""]
    install("FlashAttention 4", tmp_path, monkeypatch)
    assert [choose(major) for major in (8, 9, 10, 12)] == ["", "FlashAttention 4", "FlashAttention 4", ""]


def without(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function whose signature lacks an argument."""

    def other(**named: Any) -> Any: ...

    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != name]
    other.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return other


def demanding(q: Any, k: Any, v: Any, ranges: Any) -> None:
    """Asks for what nobody gives it."""


@pytest.mark.parametrize(
    ("name", "version", "functions", "reason"),
    [
        ("FlashAttention 4", "5.1", (forward_4, backward_4), "known are versions 4.0.*"),
        ("FlashAttention 3", "2.9", (forward_3, backward_3), "known are versions 3.*"),
        ("FlashAttention 4", "4.0.1", (without(forward_4, "return_lse"), backward_4), "other has no return_lse"),
        ("FlashAttention 3", "3.0.1", (forward_3, without(backward_3, "is_causal")), "other has no is_causal"),
        ("FlashAttention 3", "3.0.2", (demanding, backward_3), "demanding has no causal, cu_seqlens_k, cu_seqlens_q"),
    ],
)
def test_an_unknown_interface_is_left_alone_and_the_log_says_once_which_and_why(
    name: str,
    version: str,
    functions: Any,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(name, tmp_path, monkeypatch, version, functions)
    with caplog.at_level(logging.WARNING):
        assert [choose(9), choose(9)] == ["", ""]
    (record,) = caplog.records
    assert names(record.getMessage(), name, version, reason)


def test_a_package_that_cannot_be_imported_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install("FlashAttention 3", tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    assert choose(9) == ""
    assert "No module named 'flash_attn_interface'" in caplog.text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_results_and_gradients_are_those_of_the_interface(
    name: str, is_causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(name, tmp_path, monkeypatch)
    inputs = rows()
    out = flash_attention(*inputs, CU_SEQLENS, 5, is_causal, name)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(out, reference.packed_attention(*inputs, CU_SEQLENS, is_causal))
    found = torch.autograd.grad(out, inputs, up)
    expected = reference.packed_attention_backward(up, *(x.detach() for x in inputs), CU_SEQLENS, is_causal)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_operators_keep_what_torch_asks_of_an_operator(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(name, tmp_path, monkeypatch)
    settings = (CU_SEQLENS, 5, False, name)
    inputs = [x.detach() for x in rows()]
    saved = (torch.ones(8, 4, 6), *inputs, *settings, torch.zeros(8, 4, 6), torch.full((4, 8), 7.0))
    torch.library.opcheck(torch.ops.oneflow.flash_attention_backward.default, saved)
    torch.library.opcheck(torch.ops.oneflow.flash_attention.default, (*rows(), *settings))


def compiled_and_eager(folder: Path) -> list[list[Tensor]]:
    """On a rank of its own, whose shapes nothing checks."""
    with pytest.MonkeyPatch.context() as patch:
        install(NAMES[0], folder, patch)
        compiled = torch.compile(flash_attention, fullgraph=True, backend="aot_eager")  # the graph, without its code
        results = []
        for function in (compiled, flash_attention):
            inputs = rows()
            out = function(*inputs, CU_SEQLENS, 5, True, NAMES[0])
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), inputs)])
        return results


def test_compiled_it_is_one_graph_and_computes_what_eager_does(launcher: Launcher, tmp_path: Path) -> None:
    ((compiled, eager),) = launcher.call(1, compiled_and_eager, tmp_path)
    torch.testing.assert_close(compiled, eager, rtol=0.0, atol=1e-6)


def test_flops_are_those_of_sequences_as_long_as_the_longest() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        inputs = [torch.zeros(8, heads, 6, requires_grad=True) for heads in (4, 2, 2)]
        out = flash_attention(*inputs, torch.zeros(4, dtype=torch.int32), 5, False, NAMES[0])
        forward = counter.get_total_flops()
        gradients = torch.autograd.grad(out.sum(), inputs)
    assert forward == 4 * 8 * 5 * 4 * 6
    assert counter.get_total_flops() == 3.5 * forward
    assert [tuple(gradient.shape) for gradient in gradients] == [(8, 4, 6), (8, 2, 6), (8, 2, 6)]
