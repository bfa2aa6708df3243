"""The entry point: what it refuses, and that it computes what `reference` defines."""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from oneflow_kernels import reference
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.packed_attention import packed_attention
from tests.kernels.flash_stand_ins import install
from tests.launching import Launcher
from tests.messages import Message

module = importlib.import_module("oneflow_kernels.packed_attention")
CU_SEQLENS = torch.tensor([0, 5, 5, 8], dtype=torch.int32)
ROW_END = torch.tensor([1, 5, 5, 5, 5, 7, 7, 8], dtype=torch.int32)  # of all LAYOUTS
KEY_SEQLENS = torch.tensor([0, 7, 10, 14], dtype=torch.int32)
RULES: dict[str, dict[str, Any]] = {
    "both ways": {},
    "causal": {"is_causal": True},
    "blocks": {"row_end": ROW_END},
    "kept keys": {"key_seqlens": KEY_SEQLENS},
}
every_rule = pytest.mark.parametrize("rule", RULES)


def rows(
    num_heads: int, num_kv_heads: int, dtype: torch.dtype = torch.float32, width: int = 6, rule: str = ""
) -> list[Tensor]:
    """Of CU_SEQLENS, and keys of KEY_SEQLENS where they are kept."""
    generator = torch.Generator().manual_seed(0)
    shapes = (8, num_heads), *[(14 if rule == "kept keys" else 8, num_kv_heads)] * 2
    return [torch.randn(*shape, width, generator=generator).to(dtype) for shape in shapes]


def test_query_heads_must_be_a_multiple_of_key_heads() -> None:
    with pytest.raises(ValueError) as error:
        packed_attention(*rows(4, 3), CU_SEQLENS, 5)
    assert Message(error.value) == "query has 4 heads, not a multiple of key's 3"


@pytest.mark.parametrize("rule", ["causal", "blocks"])
def test_two_rules_at_once_are_refused(rule: str) -> None:
    with pytest.raises(ValueError) as error:
        packed_attention(*rows(4, 2), CU_SEQLENS, 7, **RULES[rule], key_seqlens=KEY_SEQLENS)
    assert Message(error.value) == "is_causal, row_end and key_seqlens exclude each other: give one of them at most"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_each_sequence_attends_to_itself(num_kv_heads: int, dtype: torch.dtype, is_causal: bool) -> None:
    """Against torch's own attention of one sequence at a time; query head i reads key head i // group."""
    query, key, value = rows(4, num_kv_heads, dtype)
    out = packed_attention(query, key, value, CU_SEQLENS, 5, is_causal)
    group = 4 // num_kv_heads
    for first, last in ((0, 5), (5, 8)):
        q = query[first:last].transpose(0, 1)
        k, v = (x[first:last].repeat_interleave(group, dim=1).transpose(0, 1) for x in (key, value))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(0, 1)
        torch.testing.assert_close(out[first:last], expected, rtol=0.0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("variable", ["reference", "triton"])
def test_a_row_attends_to_what_comes_before_its_end(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these rows were a sequence."""
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    query, key, value = rows(4, 2)
    out = packed_attention(query, key, value, CU_SEQLENS, 5, row_end=ROW_END)
    for row, first, end in zip(range(8), [0] * 5 + [5] * 3, ROW_END.tolist(), strict=True):
        seen = slice(first, end)
        whole = torch.tensor([0, end - first], dtype=torch.int32)
        expected = packed_attention(query[row : row + 1].expand(end - first, -1, -1), key[seen], value[seen], whole, 5)
        torch.testing.assert_close(out[row], expected[0], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("variable", ["reference", "triton"])
def test_rows_attend_to_kept_keys_as_to_those_of_their_own(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the last rows of a sequence that has them all."""
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    _, key, value = rows(2, 2, rule="kept keys")
    query, is_last = torch.randn(14, 2, 6), torch.tensor([0, 0, *[1] * 5, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    out = packed_attention(query[is_last], key, value, CU_SEQLENS, 7, key_seqlens=KEY_SEQLENS)
    expected = packed_attention(query, key, value, KEY_SEQLENS, 7)[is_last]
    torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-6)


def test_output_keeps_the_dtype_of_its_input() -> None:
    assert packed_attention(*rows(2, 1, torch.bfloat16), CU_SEQLENS, 5).dtype == torch.bfloat16


def test_a_sequence_of_one_row_returns_its_value() -> None:
    query, key, value = (x[:1] for x in rows(4, 2))
    out = packed_attention(query, key, value, torch.tensor([0, 1], dtype=torch.int32), 1)
    torch.testing.assert_close(out, value.repeat_interleave(2, dim=1))


def test_order_of_sequences_does_not_matter() -> None:
    query, key, value = rows(4, 2)
    swapped = torch.tensor([5, 6, 7, 0, 1, 2, 3, 4])
    out = packed_attention(query, key, value, CU_SEQLENS, 5)
    other = packed_attention(*(x[swapped] for x in (query, key, value)), torch.tensor([0, 3, 8], dtype=torch.int32), 5)
    torch.testing.assert_close(out[swapped], other)


# The same as one step of a graph, which knows sizes but no values.

OPERATORS = torch.ops.oneflow
LAYOUTS = ([5, 0, 3], [1, 6, 1])  # lengths of sequences


@pytest.mark.parametrize(("num_kv_heads", "rule"), [(1, "causal"), (4, "both ways"), (2, "blocks"), (2, "kept keys")])
def test_the_operator_and_its_gradient_keep_what_torch_asks_of_an_operator(num_kv_heads: int, rule: str) -> None:
    """Among it: inputs are not changed, fake results have the shapes, dtypes and strides of real ones."""
    inputs = rows(4, num_kv_heads, torch.float64, rule=rule)
    named = {"is_causal": False, "row_end": None, "key_seqlens": None} | RULES[rule]
    settings = (CU_SEQLENS, 7, *named.values())
    grad = torch.randn(8, 4, 6, dtype=torch.float64)
    torch.library.opcheck(OPERATORS.packed_attention_backward.default, (grad, *inputs, *settings))
    inputs = [row.requires_grad_() for row in inputs]
    torch.library.opcheck(OPERATORS.packed_attention.default, (*inputs, *settings))


@pytest.mark.parametrize("variable", ["auto", "triton"])
@every_rule
def test_without_values_attention_and_its_gradients_have_their_shapes(
    variable: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan is the same wherever it is made, also where no Triton could run."""
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    monkeypatch.delenv("TRITON_INTERPRET")
    shapes = [tuple(row.shape) for row in rows(4, 2, rule=rule)]

    def found(device: str) -> list[tuple[int, ...]]:
        like = [torch.zeros(shape, requires_grad=True, device=device) for shape in shapes]
        zeros = {x: torch.zeros(x.shape, dtype=torch.int32, device=device) for x in (ROW_END, KEY_SEQLENS, CU_SEQLENS)}
        settings = {name: zeros.get(x, x) for name, x in RULES[rule].items()}
        out = packed_attention(*like, zeros[CU_SEQLENS], 7, **settings)
        return [tuple(x.shape) for x in (out, *torch.autograd.grad(out.sum(), like))]

    with FakeTensorMode():
        assert found("cpu") == [shapes[0], *shapes]
    assert found("meta") == [shapes[0], *shapes]


def compiled_and_eager(dtype: torch.dtype) -> list[list[Tensor]]:
    """Output and gradients, of every rule and in two layouts; on a rank of its own, whose shapes nothing checks."""
    compiled = torch.compile(packed_attention, fullgraph=True, backend="aot_eager")  # the graph, without its code
    results = []
    for function, rule, lengths in itertools.product((compiled, packed_attention), RULES, LAYOUTS):
        inputs = [row.requires_grad_() for row in rows(4, 2, dtype, rule=rule)]
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        out = function(*inputs, cu_seqlens, 8, **RULES[rule])
        up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, up)])
    return results


def test_compiled_attention_is_one_graph_and_computes_what_eager_does(launcher: Launcher) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        (found,) = launcher.call(1, compiled_and_eager, dtype)
        half = len(found) // 2
        assert half == 8
        torch.testing.assert_close(found[:half], found[half:], rtol=0.0, atol=bound)


# Which implementation runs.


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[inspect.BoundArguments]:
    """Calls of torch's kernel and of ours, as on CUDA: without one only the calls can be checked."""
    calls: list[inspect.BoundArguments] = []

    def recorded(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        signature = inspect.signature(original)

        def record(*arguments: Any, **named: Any) -> Tensor:
            calls.append(signature.bind(*arguments, **named))
            return torch.zeros_like(arguments[0])

        return record

    monkeypatch.setattr(varlen, "varlen_attn", recorded(varlen.varlen_attn))
    monkeypatch.setattr(module, "interval_attention", recorded(interval_attention))
    monkeypatch.setattr(module, "_fastest", lambda device, width: module.FLASH)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return calls


@pytest.mark.parametrize(("is_causal", "window"), [(False, (-1, -1)), (True, (-1, 0))])
@pytest.mark.parametrize("asks", [False, True])
def test_the_kernel_of_cuda_is_asked_for_the_same_rows(
    is_causal: bool, window: tuple[int, int], asks: bool, chosen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values are repeated for no torch; one that must be asked to share them is."""
    monkeypatch.setattr(module, "ASKS_FOR_GROUPS", asks)
    query, key, value = rows(4, 2, torch.bfloat16, width=8)
    packed_attention(query, key, value, CU_SEQLENS, 5, is_causal)
    (call,) = chosen
    assert call.arguments["window_size"] == window
    assert (call.arguments["max_q"], call.arguments["max_k"]) == (5, 5)
    assert call.arguments.get("enable_gqa", False) == asks
    assert torch.equal(call.arguments["key"], key)


@pytest.mark.parametrize(
    ("variable", "width", "is_flash"), [("auto", 64, True), ("auto", 80, False), ("triton", 64, False)]
)
def test_on_cuda_an_installed_flash_attention_runs_if_it_has_the_width_unless_ours_is_asked_for(
    variable: str, width: int, is_flash: bool, chosen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("FlashAttention 3", tmp_path, monkeypatch)
    monkeypatch.setattr(module, "_fastest", lambda device, width: module.fastest(9, width))
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    inputs = rows(4, 2, torch.bfloat16, width)
    out = packed_attention(*inputs, CU_SEQLENS, 5)
    assert (chosen == []) == is_flash
    assert torch.equal(out, reference.packed_attention(*inputs, CU_SEQLENS)) == is_flash


@pytest.mark.parametrize(("major", "width", "is_ours"), [(9, 64, True), (9, 32, True), (9, 128, False), (8, 64, False)])
def test_ours_is_the_fastest_where_it_was_measured_to_be(major: int, width: int, is_ours: bool) -> None:
    assert module.fastest(major, width) == (module.TRITON if is_ours else module.FLASH)


@pytest.mark.parametrize(
    ("variable", "dtype", "width", "is_ours"),
    [
        ("auto", torch.float16, 8, False),
        ("auto", torch.float32, 8, True),
        ("auto", torch.bfloat16, 6, True),
        ("triton", torch.bfloat16, 8, True),
    ],
)
def test_on_cuda_ours_runs_where_it_is_asked_for_and_where_torch_has_none(
    variable: str, dtype: torch.dtype, width: int, is_ours: bool, chosen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    packed_attention(*rows(4, 2, dtype, width), CU_SEQLENS, 5)
    (call,) = chosen
    assert ("intervals" in call.arguments) == is_ours


@pytest.mark.parametrize(("variable", "dtype"), [("reference", torch.bfloat16), ("auto", torch.float64)])
@every_rule
def test_on_cuda_the_definition_runs_where_it_is_asked_for_and_where_no_kernel_is(
    variable: str, dtype: torch.dtype, rule: str, chosen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", variable)
    inputs = rows(4, 2, dtype, 8, rule)
    assert packed_attention(*inputs, CU_SEQLENS, 7, **RULES[rule]).ne(0.0).all()
    assert chosen == []


@every_rule
def test_on_cuda_rules_that_flash_attention_does_not_know_are_ours(
    rule: str, chosen: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_announced", set())
    with caplog.at_level(logging.INFO):
        packed_attention(*rows(4, 2, torch.bfloat16, 8, rule), CU_SEQLENS, 7, **RULES[rule])
    (call,) = chosen
    is_ours = rule in ("blocks", "kept keys")
    assert ("intervals" in call.arguments) == is_ours
    (record,) = caplog.records
    to, which = (" to blocks or kept keys", module.TRITON) if is_ours else ("", module.FLASH)
    assert record.getMessage() == f"packed attention{to} is {which}"


@every_rule
def test_the_kernel_computes_what_the_definition_does(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for variable in ("triton", "reference"):
        monkeypatch.setenv("ONEFLOW_KERNELS", variable)
        inputs = [row.requires_grad_() for row in rows(4, 2, rule=rule)]
        out = packed_attention(*inputs, CU_SEQLENS, 7, **RULES[rule])
        up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad(out, inputs, up)])
    torch.testing.assert_close(*results, rtol=0.0, atol=1e-5)


def test_the_log_says_once_which_one_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_announced", set())
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            packed_attention(*rows(4, 2), CU_SEQLENS, 5)
    assert [record.getMessage() for record in caplog.records] == ["packed attention is the plain definition"]
